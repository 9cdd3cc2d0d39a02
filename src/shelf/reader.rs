//! Reading a file from front to back: large reads behind small requests.

use std::sync::Arc;

use crate::storage::{DiskError, DiskFile};

/// Bytes read at a time.
pub(super) const READ: usize = 1 << 20;
/// A buffer that grew beyond this for a large transaction is given back.
const KEEP_MAX: usize = 8 << 20;

/// See the module.
pub(crate) struct Reader {
    file: Arc<dyn DiskFile>,
    end: u64,
    buf: Vec<u8>,
    start: u64,
}

impl Reader {
    /// Reads `file` up to `end`, which must not be beyond the end of the file.
    pub fn new(file: Arc<dyn DiskFile>, end: u64) -> Reader {
        Reader { file, end, buf: Vec::new(), start: 0 }
    }

    pub fn end(&self) -> u64 {
        self.end
    }

    /// `len` bytes from `offset`; `DiskError::Short` if that is beyond the end.
    pub fn bytes(&mut self, offset: u64, len: usize) -> Result<&[u8], DiskError> {
        let wanted = len as u64;
        if offset.checked_add(wanted).is_none_or(|end| end > self.end) {
            let name = self.file.name().to_owned();
            return Err(DiskError::Short { name, offset, wanted });
        }
        let buffered = self.start..self.start + self.buf.len() as u64;
        if offset < buffered.start || offset + wanted > buffered.end {
            self.fill(offset, len)?;
        }
        let from = (offset - self.start) as usize;
        Ok(&self.buf[from..from + len])
    }

    fn fill(&mut self, offset: u64, len: usize) -> Result<(), DiskError> {
        let have_end = self.start + self.buf.len() as u64;
        if (self.start..have_end).contains(&offset) {
            self.buf.drain(..(offset - self.start) as usize);
        } else {
            self.buf.clear();
        }
        if self.buf.capacity() > KEEP_MAX && len < READ {
            self.buf.shrink_to(READ);
        }
        self.start = offset;
        let kept = self.buf.len();
        let total = (len.max(READ) as u64).min(self.end - offset) as usize;
        self.buf.resize(total, 0);
        let read = self.file.read_at(offset + kept as u64, &mut self.buf[kept..]);
        if read.is_err() {
            self.buf.truncate(kept);
        }
        read
    }
}
