//! The same question of many clients is asked once.
//!
//! Keyed like the cache, and by what else changes the question (RD, the transport). Who asks first leads, and the others
//! wait for its answer. It is kept *before* the leader's entry goes, and who finds no entry looks into the cache once
//! more, under the lock: so there is no moment at which a question is neither under way nor answered, and one name asked
//! by a thousand clients is one question upstream. Most questions are joined by nobody, so what those who wait need is
//! made by the first of them.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::metrics::Counter;

/// Who waits for the answer to a question; `None`: nobody yet.
type Waiting<V> = Option<watch::Sender<Option<V>>>;

/// Those questions, and who waits for each.
type UnderWay<K, V> = Mutex<HashMap<K, Waiting<V>>>;

/// Questions under way. Bounded by the misses under way, which `listen` bounds.
#[derive(Debug)]
pub struct Coalescer<K, V> {
    under_way: Arc<UnderWay<K, V>>,
    /// Those who waited for somebody else's answer.
    pub joined: Counter,
}

impl<K, V> Default for Coalescer<K, V> {
    fn default() -> Self {
        Self { under_way: Arc::default(), joined: Counter::default() }
    }
}

/// What becomes of somebody who asks.
enum Role<K: Eq + Hash, V> {
    Leads(Entry<K, V>),
    Waits(watch::Receiver<Option<V>>),
    IsAnswered(V),
}

impl<K, V> Coalescer<K, V>
where
    K: Clone + Eq + Hash,
    V: Clone,
{
    /// Joins those who ask the same, or leads. `answered_meanwhile` looks into the cache; `lead` asks, and keeps what
    /// it learns. `None`: the leader has ended without a word (a bug of ours). The caller must not drop the future
    /// before its end for a client's sake: those who wait would get nothing.
    pub async fn ask(
        &self,
        key: K,
        answered_meanwhile: impl FnOnce() -> Option<V>,
        lead: impl Future<Output = V>,
    ) -> Option<V> {
        match self.join(key, answered_meanwhile) {
            Role::IsAnswered(answer) => Some(answer),
            Role::Waits(mut answer) => answer.wait_for(Option::is_some).await.ok()?.clone(),
            Role::Leads(entry) => Some(entry.lead(lead).await),
        }
    }

    /// As [`Coalescer::ask`], for a question that is asked to its end, whoever waits: who leads does so in a task of its
    /// own, so the future may be dropped once it has been polled.
    pub async fn ask_to_the_end(
        &self,
        key: K,
        answered_meanwhile: impl FnOnce() -> Option<V>,
        lead: impl Future<Output = V> + Send + 'static,
    ) -> Option<V>
    where
        K: Send + 'static,
        V: Send + Sync + 'static,
    {
        match self.join(key, answered_meanwhile) {
            Role::IsAnswered(answer) => Some(answer),
            Role::Waits(mut answer) => answer.wait_for(Option::is_some).await.ok()?.clone(),
            Role::Leads(entry) => tokio::spawn(entry.lead(lead)).await.ok(),
        }
    }

    fn join(&self, key: K, answered_meanwhile: impl FnOnce() -> Option<V>) -> Role<K, V> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = under_way.get_mut(&key) {
            self.joined.add(1);
            return Role::Waits(waiting.get_or_insert_with(|| watch::Sender::new(None)).subscribe());
        }
        if let Some(answer) = answered_meanwhile() {
            return Role::IsAnswered(answer);
        }
        under_way.insert(key.clone(), None);
        drop(under_way);
        Role::Leads(Entry { under_way: Arc::clone(&self.under_way), key: Some(key) })
    }

    /// Questions under way, now.
    pub fn len(&self) -> usize {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A question under way; nobody can join it any more once this is dropped, however the leader ends.
struct Entry<K: Eq + Hash, V> {
    under_way: Arc<UnderWay<K, V>>,
    key: Option<K>,
}

impl<K: Eq + Hash, V> Entry<K, V> {
    /// Asks, and tells those who wait.
    async fn lead(mut self, lead: impl Future<Output = V>) -> V
    where
        V: Clone,
    {
        let answer = lead.await;
        if let Some(waiting) = self.take() {
            waiting.send_replace(Some(answer.clone()));
        }
        answer
    }

    fn take(&mut self) -> Waiting<V> {
        let key = self.key.take()?;
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&key)?
    }
}

impl<K: Eq + Hash, V> Drop for Entry<K, V> {
    fn drop(&mut self) {
        // Those who wait learn by it that nobody answers them.
        drop(self.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    #[tokio::test]
    async fn many_who_ask_the_same_are_answered_by_one_question() {
        let coalescer = Arc::new(Coalescer::<u8, usize>::default());
        let asked = Arc::new(AtomicUsize::new(0));
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let clients: Vec<_> = (0..100)
            .map(|_| {
                let (coalescer, asked, gate) =
                    (Arc::clone(&coalescer), Arc::clone(&asked), Arc::clone(&gate));
                tokio::spawn(async move {
                    let lead = async move {
                        drop(gate.acquire().await);
                        asked.fetch_add(1, Relaxed) + 7
                    };
                    coalescer.ask(1, || None, lead).await
                })
            })
            .collect();
        while coalescer.joined.get() < 99 {
            tokio::task::yield_now().await;
        }
        gate.add_permits(1);
        for client in clients {
            assert_eq!(client.await.unwrap(), Some(7));
        }
        assert_eq!(asked.load(Relaxed), 1);
        assert_eq!(coalescer.ask(1, || Some(9), async { 0 }).await, Some(9));
    }

    #[tokio::test]
    async fn a_question_asked_to_the_end_outlives_who_asked_it() {
        let coalescer = Coalescer::<u8, usize>::default();
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let (opened, lead_gate) = (Arc::clone(&gate), Arc::clone(&gate));
        let lead = async move {
            drop(lead_gate.acquire().await);
            7
        };
        let first = coalescer.ask_to_the_end(1, || None, lead);
        assert!(tokio::time::timeout(std::time::Duration::ZERO, first).await.is_err());
        assert_eq!(coalescer.len(), 1);
        let second = coalescer.ask(1, || None, async { 9 });
        let (answer, ()) = tokio::join!(second, async move { opened.add_permits(1) });
        assert_eq!(answer, Some(7));
        assert!(coalescer.is_empty());
    }

    #[tokio::test]
    async fn a_leader_who_panics_leaves_no_entry_behind() {
        let coalescer = Arc::new(Coalescer::<u8, usize>::default());
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let leads = {
            let (coalescer, gate) = (Arc::clone(&coalescer), Arc::clone(&gate));
            tokio::spawn(async move {
                let lead = async move {
                    drop(gate.acquire().await);
                    panic!("a bug")
                };
                coalescer.ask(1, || None, lead).await
            })
        };
        while coalescer.is_empty() {
            tokio::task::yield_now().await;
        }
        let waits = {
            let coalescer = Arc::clone(&coalescer);
            tokio::spawn(async move { coalescer.ask(1, || None, async { 5 }).await })
        };
        while coalescer.joined.get() < 1 {
            tokio::task::yield_now().await;
        }
        gate.add_permits(1);
        assert!(leads.await.is_err());
        assert_eq!(waits.await.unwrap(), None);
        assert_eq!(coalescer.ask(1, || None, async { 3 }).await, Some(3));
    }
}
