//! A file that is written behind its writer: on a thread of its own, so that the writer goes on meanwhile.
//!
//! For bulk work that has the machine to itself. It syncs now and then without being asked, so that `sync` at the end has
//! little left to do. What is read is what was written, since reading waits for it. The first write or sync that fails is
//! the last one: its error answers whoever asks next, be it for a sync, and everything after that fails too.
//!
//! Nothing here is durable before `sync` has said so, just as with any other file.

use std::io;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use super::{DiskError, DiskFile};

/// Writes that wait, besides the one that is being done.
const WAITING_MAX: usize = 1;
/// Bytes written between two syncs that nobody has asked for. A sync of much more takes so long that the writer has to wait.
const SYNC_EVERY: u64 = 4 << 20;

/// See the module.
pub(super) struct Behind {
    file: Arc<dyn DiskFile>,
    /// Tasks of several threads must not overtake each other.
    writer: Mutex<Writer>,
}

struct Writer {
    /// None once it is over.
    tasks: Option<SyncSender<Task>>,
    /// None once its error was told.
    thread: Option<JoinHandle<Result<(), DiskError>>>,
    /// Buffers that have been written.
    free: Receiver<Vec<u8>>,
    /// Something may not be written yet.
    pending: bool,
}

enum Task {
    Write(u64, Vec<u8>),
    /// To be answered when everything before is written.
    Flush(Sender<()>),
    /// To be answered when everything before is durable.
    Sync(Sender<()>),
}

impl Behind {
    pub fn new(file: Arc<dyn DiskFile>) -> Result<Behind, DiskError> {
        let (tasks, received) = sync_channel(WAITING_MAX);
        let (freed, free) = channel();
        let written = file.clone();
        let thread = std::thread::Builder::new()
            .name("behind".to_owned())
            .spawn(move || work(&*written, received, freed))
            .map_err(|source| io_error("write", &*file, source))?;
        let writer = Writer { tasks: Some(tasks), thread: Some(thread), free, pending: false };
        Ok(Behind { file, writer: Mutex::new(writer) })
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().expect("a thread panicked while it gave a task")
    }

    /// Waits until everything is written.
    fn flush(&self, verb: &'static str) -> Result<(), DiskError> {
        let mut writer = self.writer();
        if writer.pending {
            writer.ask(verb, &*self.file, Task::Flush)?;
            writer.pending = false;
        }
        Ok(())
    }
}

impl Writer {
    fn give(
        &mut self,
        verb: &'static str,
        file: &dyn DiskFile,
        task: Task,
    ) -> Result<(), DiskError> {
        match self.tasks.as_ref().map(|tasks| tasks.send(task)) {
            Some(Ok(())) => Ok(()),
            _ => Err(self.error(verb, file)),
        }
    }

    /// Gives a task and waits for its answer.
    fn ask(
        &mut self,
        verb: &'static str,
        file: &dyn DiskFile,
        task: impl FnOnce(Sender<()>) -> Task,
    ) -> Result<(), DiskError> {
        let (answer, answered) = channel();
        self.give(verb, file, task(answer))?;
        answered.recv().map_err(|_| self.error(verb, file))
    }

    /// Why the thread takes no more tasks.
    fn error(&mut self, verb: &'static str, file: &dyn DiskFile) -> DiskError {
        self.tasks = None;
        // whoever reads now must come here again
        self.pending = true;
        let first = self.thread.take().map(|thread| thread.join().expect("a write panicked"));
        match first {
            Some(Err(error)) => error,
            _ => io_error(verb, file, io::Error::other("an earlier write of this file failed")),
        }
    }
}

/// Until there will be no more tasks, or an error.
fn work(
    file: &dyn DiskFile,
    tasks: Receiver<Task>,
    freed: Sender<Vec<u8>>,
) -> Result<(), DiskError> {
    let mut unsynced = 0;
    for task in tasks {
        let (sync, answer) = match task {
            Task::Write(offset, bytes) => {
                file.write_at(offset, &bytes)?;
                unsynced += bytes.len() as u64;
                // Nobody may be left who wants it; the same goes for answers.
                let _ = freed.send(bytes);
                (unsynced >= SYNC_EVERY, None)
            }
            Task::Flush(answer) => {
                let _ = answer.send(());
                // Who reads has no more to write for now.
                (unsynced > 0, None)
            }
            Task::Sync(answer) => (true, Some(answer)),
        };
        if sync {
            file.sync()?;
            unsynced = 0;
        }
        let _ = answer.map(|answer| answer.send(()));
    }
    Ok(())
}

impl DiskFile for Behind {
    fn name(&self) -> &str {
        self.file.name()
    }

    fn len(&self) -> Result<u64, DiskError> {
        self.flush("measure")?;
        self.file.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        self.flush("read")?;
        self.file.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        let mut writer = self.writer();
        let mut bytes = writer.free.try_recv().unwrap_or_default();
        bytes.clear();
        bytes.extend_from_slice(data);
        writer.pending = true;
        writer.give("write", &*self.file, Task::Write(offset, bytes))
    }

    fn truncate(&self, len: u64) -> Result<(), DiskError> {
        self.flush("truncate")?;
        self.file.truncate(len)
    }

    fn sync(&self) -> Result<(), DiskError> {
        let mut writer = self.writer();
        writer.ask("sync", &*self.file, Task::Sync)?;
        writer.pending = false;
        Ok(())
    }
}

impl Drop for Behind {
    /// Its thread ends before it does. Who drops it without a sync does not care what became of it.
    fn drop(&mut self) {
        let writer = self.writer.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        writer.tasks = None;
        let _ = writer.thread.take().map(JoinHandle::join);
    }
}

fn io_error(verb: &'static str, file: &dyn DiskFile, source: io::Error) -> DiskError {
    DiskError::Io { verb, name: file.name().to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Disk;
    use crate::storage::mem::MemDisk;
    use std::time::Duration;

    /// A slow file that notes what is done to it, and says no to one of these deeds.
    struct Slow {
        file: Arc<dyn DiskFile>,
        done: Mutex<Vec<&'static str>>,
        fails_at: usize,
    }

    impl Slow {
        fn note(&self, what: &'static str) -> Result<(), DiskError> {
            std::thread::sleep(Duration::from_millis(1));
            let mut done = self.done.lock().unwrap();
            done.push(what);
            match done.len() == self.fails_at {
                true => Err(io_error(what, self, io::Error::other("no room"))),
                false => Ok(()),
            }
        }
    }

    impl DiskFile for Slow {
        fn name(&self) -> &str {
            "slow"
        }

        fn len(&self) -> Result<u64, DiskError> {
            self.file.len()
        }

        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
            self.file.read_at(offset, buf)
        }

        fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
            self.note("write")?;
            self.file.write_at(offset, data)
        }

        fn truncate(&self, len: u64) -> Result<(), DiskError> {
            self.file.truncate(len)
        }

        fn sync(&self) -> Result<(), DiskError> {
            self.note("sync")
        }
    }

    fn slow(fails_at: usize) -> (Arc<Slow>, Behind) {
        let file = MemDisk::new().create("slow").unwrap();
        let slow = Arc::new(Slow { file, done: Mutex::default(), fails_at });
        (slow.clone(), Behind::new(slow).unwrap())
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        let (_, file) = slow(0);
        let mut model = Vec::new();
        for n in 0..100_usize {
            // on and on, and now and then at the beginning again
            let (at, len) = if n % 7 == 6 { (n, 2) } else { (model.len(), 5 + n % 3) };
            let bytes = vec![n as u8; len];
            file.write_at(at as u64, &bytes).unwrap();
            model.resize(model.len().max(at + len), 0);
            model[at..at + len].copy_from_slice(&bytes);
            if n % 10 == 3 {
                let mut read = vec![0; model.len()];
                file.read_at(0, &mut read).unwrap();
                assert_eq!(read, model);
            }
            if n % 10 == 7 {
                assert_eq!(file.len().unwrap(), model.len() as u64);
            }
            if n % 10 == 9 {
                model.truncate(model.len() - 1);
                file.truncate(model.len() as u64).unwrap();
            }
        }
        assert!(matches!(file.read_at(1 << 20, &mut [0]), Err(DiskError::Short { .. })));
    }

    #[test]
    fn it_syncs_by_itself_and_whenever_it_is_asked_to() {
        let (slow, file) = slow(0);
        let piece = vec![1; SYNC_EVERY as usize / 2];
        let mut expected = Vec::new();
        for nth in 0..5 {
            file.write_at(nth * piece.len() as u64, &piece).unwrap();
            expected.extend(["write"].iter().chain(["sync"].iter().filter(|_| nth % 2 == 1)));
        }
        file.read_at(0, &mut [0]).unwrap();
        file.read_at(7, &mut [0]).unwrap();
        expected.push("sync");
        file.sync().unwrap();
        expected.push("sync");
        assert_eq!(*slow.done.lock().unwrap(), expected);
        file.write_at(0, b"x").unwrap();
        drop(file);
        assert_eq!(slow.done.lock().unwrap().last(), Some(&"write"), "what was given is written");
        assert_eq!(Arc::strong_count(&slow), 1, "its thread is over");
    }

    #[test]
    fn after_an_error_nothing_is_written_and_no_sync_succeeds() {
        let piece = vec![1; SYNC_EVERY as usize / 2];
        // the second write, the sync after it, the sync that is asked for
        for (fails_at, verb) in [(2, "write"), (3, "sync"), (5, "sync")] {
            let (slow, file) = slow(fails_at);
            let mut results: Vec<_> = (0..3).map(|nth| file.write_at(nth, &piece)).collect();
            results.push(file.sync());
            assert!(results.last().unwrap().is_err(), "failed at {fails_at}");
            let first = results.into_iter().find_map(Result::err).unwrap();
            assert_eq!(first.to_string(), format!("{verb} slow: no room"));
            for later in
                [file.sync(), file.write_at(0, b"x"), file.read_at(0, &mut [0]), file.truncate(0)]
            {
                assert!(later.unwrap_err().to_string().contains("earlier"));
            }
            assert_eq!(slow.done.lock().unwrap().len(), fails_at);
        }
    }
}
