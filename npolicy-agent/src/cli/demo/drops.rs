//! The agent's drop log, read as it grows.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// A log file and how far it has been read.
#[derive(Debug)]
pub(super) struct DropLog {
    path: PathBuf,
    read: u64,
}

/// How often the file is looked at.
pub(super) const POLL: Duration = Duration::from_millis(50);

impl DropLog {
    /// Starts at the beginning of a file that may not be there yet.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, read: 0 }
    }

    /// The whole lines that were written since the last call.
    pub(super) fn new_lines(&mut self) -> io::Result<Vec<String>> {
        let mut file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            file => file?,
        };
        file.seek(SeekFrom::Start(self.read))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        self.read += whole as u64;
        Ok(String::from_utf8_lossy(&bytes[..whole]).lines().map(str::to_owned).collect())
    }

    /// Waits for a line; the lines before it are passed over.
    pub(super) fn wait_for(&mut self, patience: Duration, is_it: impl Fn(&str) -> bool) -> io::Result<Option<String>> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(line) = self.new_lines()?.into_iter().find(|line| is_it(line)) {
                return Ok(Some(line));
            }
            if Instant::now() > deadline {
                return Ok(None);
            }
            thread::sleep(POLL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn hands_over_whole_lines_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("drops");
        let mut log = DropLog::new(path.clone());
        assert!(log.new_lines().unwrap().is_empty(), "the file is not there yet");
        let mut file = File::create(&path).unwrap();
        file.write_all(b"one\ntwo\nthr").unwrap();
        assert_eq!(log.new_lines().unwrap(), ["one", "two"]);
        assert!(log.new_lines().unwrap().is_empty());
        file.write_all(b"ee\n").unwrap();
        assert_eq!(log.wait_for(Duration::ZERO, |line| line.contains("hre")).unwrap().as_deref(), Some("three"));
        assert_eq!(log.wait_for(Duration::ZERO, |_| true).unwrap(), None);
    }
}
