//! For tests: texts that nobody would write, of pieces that mean something. The same ones each time.

/// How many there are.
const TEXTS: usize = 20_000;

/// Pieces in each.
const LENGTH: usize = 8;

pub(crate) fn of<'a>(pieces: &'a [&'a str]) -> impl Iterator<Item = String> + 'a {
    // Knuth's generator: good enough to draw from a few pieces.
    let mut state = 1_u64;
    let mut draw = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let index = usize::try_from(state >> 33).unwrap() % pieces.len();
        *pieces.get(index).unwrap()
    };
    (0..TEXTS).map(move |_| (0..LENGTH).map(|_| draw()).collect())
}
