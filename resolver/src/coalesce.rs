//! The same question of many clients is asked once.
//!
//! Keyed like the cache, and by what else changes the question (RD, the transport). The one who leads does so in a task
//! of its own, which goes on when the client that began it goes away. Its answer is kept *before* its entry goes, and
//! who finds no entry looks into the cache once more, under the lock: so there is no moment at which a question is
//! neither under way nor answered, and one name asked by a thousand clients is one question upstream.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::metrics::Counter;

/// Questions under way. Bounded by the misses under way, which `listen` bounds.
#[derive(Debug)]
pub struct Coalescer<K, V> {
    under_way: Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>,
    /// Those who waited for somebody else's answer.
    pub joined: Counter,
}

impl<K, V> Default for Coalescer<K, V> {
    fn default() -> Self {
        Self { under_way: Arc::default(), joined: Counter::default() }
    }
}

impl<K, V> Coalescer<K, V>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Joins those who ask the same, or leads. `answered_meanwhile` looks into the cache; `lead` asks, and keeps what
    /// it learns. `None`: the leader has ended without a word (a bug of ours).
    pub async fn ask(
        &self,
        key: K,
        answered_meanwhile: impl FnOnce() -> Option<V>,
        lead: impl Future<Output = V> + Send + 'static,
    ) -> Option<V> {
        let mut answer = match self.join(key, answered_meanwhile, lead) {
            Ok(answer) => return Some(answer),
            Err(under_way) => under_way,
        };
        answer.wait_for(Option::is_some).await.ok()?.clone()
    }

    fn join(
        &self,
        key: K,
        answered_meanwhile: impl FnOnce() -> Option<V>,
        lead: impl Future<Output = V> + Send + 'static,
    ) -> Result<V, watch::Receiver<Option<V>>> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = under_way.get(&key) {
            self.joined.add(1);
            return Err(answer.clone());
        }
        if let Some(answer) = answered_meanwhile() {
            return Ok(answer);
        }
        let (sender, receiver) = watch::channel(None);
        under_way.insert(key.clone(), receiver.clone());
        let entry = Entry { under_way: Arc::clone(&self.under_way), key };
        tokio::spawn(async move {
            let answer = lead.await;
            drop(entry);
            sender.send_replace(Some(answer));
        });
        Err(receiver)
    }
}

/// A question under way; nobody can join it any more once this is dropped, however the leader ends.
struct Entry<K: Eq + Hash, V> {
    under_way: Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Entry<K, V> {
    fn drop(&mut self) {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
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
    async fn a_leader_who_panics_leaves_no_entry_behind() {
        let coalescer = Coalescer::<u8, usize>::default();
        assert_eq!(coalescer.ask(1, || None, async { panic!("a bug") }).await, None);
        assert_eq!(coalescer.ask(1, || None, async { 3 }).await, Some(3));
    }
}
