//! A fuzzer's bytes, taken from the front: small numbers, lengths, and pieces.
//!
//! What is missing reads as zeros and empty pieces, so every input means something, and a longer one means what its
//! beginning did and more: that is what lets libFuzzer put inputs together.

/// See the module.
pub struct Script<'a> {
    rest: &'a [u8],
}

impl<'a> Script<'a> {
    pub fn new(bytes: &'a [u8]) -> Script<'a> {
        Script { rest: bytes }
    }

    pub fn is_over(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.rest.split_first() else { return 0 };
        self.rest = rest;
        *first
    }

    /// 0 to `below` - 1.
    pub fn below(&mut self, below: usize) -> usize {
        usize::from(self.byte()) % below.max(1)
    }

    pub fn short(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// A small number, seldom a great one: a byte of 0 to 239, or one of the numbers that break things.
    pub fn number(&mut self) -> u64 {
        const GREAT: [u64; 16] = [
            u64::MAX,
            u64::MAX - 1,
            u64::MAX / 2,
            1 << 62,
            (1 << 62) - 1,
            1 << 48,
            1 << 32,
            u32::MAX as u64,
            u32::MAX as u64 - 1,
            1 << 31,
            1 << 24,
            65536,
            65535,
            1000,
            512,
            256,
        ];
        match self.byte() {
            great @ 240.. => GREAT[usize::from(great - 240)],
            small => small.into(),
        }
    }

    /// A piece whose length comes before it, in one byte.
    pub fn piece(&mut self) -> &'a [u8] {
        let len = usize::from(self.byte());
        self.take(len)
    }

    /// The same with a length of two bytes.
    pub fn long_piece(&mut self) -> &'a [u8] {
        let len = usize::from(self.short());
        self.take(len)
    }

    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }
}

/// Damages bytes by a piece of script, three bytes a time: place and what is xored there (0: cut off from there on).
pub fn damage(bytes: &mut Vec<u8>, how: &[u8]) {
    for change in how.chunks_exact(3) {
        if bytes.is_empty() {
            return;
        }
        let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % bytes.len();
        match change[2] {
            0 => bytes.truncate(at),
            mask => bytes[at] ^= mask,
        }
    }
}
