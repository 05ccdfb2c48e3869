//! Lines of a file or of the standard input, read by a thread of its own: a pipe may be silent for
//! as long as it likes without holding up what is under way.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::vec;

use tokio::sync::mpsc;
use volley_protocol::fault::{ErrorCode, Fault};
use volley_protocol::limits::PAYLOAD_BYTES_MAX;

/// Bytes that are read at once; what they hold travels together to the reader of the lines.
const READ_BYTES: usize = 64 << 10;

/// Batches of lines that wait for their reader: what is read ahead, a quarter of a megabyte.
const BATCHES_MAX: usize = 4;

type Batch = Result<Vec<Vec<u8>>, Fault>;

/// Lines that are not empty, without their ends.
#[derive(Debug)]
pub(crate) struct Lines {
    batches: mpsc::Receiver<Batch>,
    ready: vec::IntoIter<Vec<u8>>,
}

impl Lines {
    /// Lines of that file; `-` is the standard input.
    ///
    /// # Errors
    /// `IO_FAILED` when there is no such file.
    pub(crate) fn open(path: &Path) -> Result<Self, Fault> {
        let source: Box<dyn Read + Send> = if path == Path::new("-") {
            Box::new(std::io::stdin())
        } else {
            Box::new(File::open(path).map_err(|error| io_fault(path, &error))?)
        };
        let (say, batches) = mpsc::channel(BATCHES_MAX);
        let path = path.to_owned();
        std::thread::Builder::new()
            .name("lines".into())
            .spawn(move || read(source, &path, &say))
            .map_err(|error| Fault::new(ErrorCode::Internal, format!("lines: {error}")))?;
        Ok(Self {
            batches,
            ready: Vec::new().into_iter(),
        })
    }

    /// Is a line at hand?
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.len() > 0 || !self.batches.is_empty()
    }

    /// The next line; `None` at the end.
    ///
    /// # Errors
    /// `IO_FAILED`, or `INVALID_REQUEST` when a line is longer than a payload may be.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<u8>>, Fault> {
        loop {
            if let Some(line) = self.ready.next() {
                return Ok(Some(line));
            }
            match self.batches.recv().await {
                Some(batch) => self.ready = batch?.into_iter(),
                None => return Ok(None),
            }
        }
    }
}

/// Reads to the end, or until nobody wants more.
fn read(source: impl Read, path: &Path, say: &mpsc::Sender<Batch>) {
    let mut source = BufReader::with_capacity(READ_BYTES, source);
    let (mut batch, mut number) = (Vec::new(), 0);
    loop {
        number += 1;
        let line = match line(&mut source, path, number) {
            Ok(Some(line)) => line,
            Ok(None) => {
                let _ = say.blocking_send(Ok(batch));
                return;
            }
            Err(fault) => {
                // What came before it is told first.
                let _ = say.blocking_send(Ok(batch));
                let _ = say.blocking_send(Err(fault));
                return;
            }
        };
        if !line.is_empty() {
            batch.push(line);
        }
        // Reading on may take a while: what is here goes ahead.
        if source.buffer().is_empty() && !batch.is_empty() {
            let read = std::mem::take(&mut batch);
            if say.blocking_send(Ok(read)).is_err() {
                return;
            }
        }
    }
}

/// One line without its end; `None` when there is none.
fn line(
    source: &mut BufReader<impl Read>,
    path: &Path,
    number: u64,
) -> Result<Option<Vec<u8>>, Fault> {
    let mut line = Vec::new();
    // The end of the line, which may be two bytes, is not part of the payload.
    let longest = PAYLOAD_BYTES_MAX as u64 + 2;
    let count = source
        .take(longest)
        .read_until(b'\n', &mut line)
        .map_err(|error| io_fault(path, &error))?;
    if count == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
    }
    if line.len() > PAYLOAD_BYTES_MAX {
        let message = format!(
            "{}, line {number}: more than {PAYLOAD_BYTES_MAX} bytes",
            path.display()
        );
        return Err(Fault::new(ErrorCode::InvalidRequest, message)
            .with_hint("put the path of a file instead of what is in it"));
    }
    Ok(Some(line))
}

fn io_fault(path: &Path, error: &std::io::Error) -> Fault {
    let path = PathBuf::from(path);
    Fault::new(ErrorCode::IoFailed, format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(bytes: &[u8]) -> Result<Vec<Vec<u8>>, Fault> {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(file.path(), bytes).expect("write");
        let mut lines = Lines::open(file.path())?;
        let mut all = Vec::new();
        while let Some(line) = lines.next().await? {
            all.push(line);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn lines_are_bytes_without_their_ends() {
        let due: Vec<Vec<u8>> = vec![b"a".to_vec(), b"\xff b".to_vec(), b"c".to_vec()];
        assert_eq!(all(b"a\n\n\xff b\r\n\r\nc").await, Ok(due));
        assert_eq!(all(b"").await, Ok(vec![]));
        let many = "0123456789\n".repeat(50_000);
        assert_eq!(all(many.as_bytes()).await.map(|all| all.len()), Ok(50_000));
    }

    #[tokio::test]
    async fn a_line_has_a_bound_and_its_number_is_told() {
        let longest = vec![b'x'; PAYLOAD_BYTES_MAX];
        let crlf = [&longest[..], b"\r\n"].concat();
        assert_eq!(all(&crlf).await, Ok(vec![longest.clone()]));
        let over = [b"a\n", &longest[..], b"x\nb\n"].concat();
        let fault = all(&over).await.expect_err("too long");
        assert_eq!(fault.code, ErrorCode::InvalidRequest);
        assert!(fault.message.contains("line 2"), "{fault}");
        let missing = Lines::open(Path::new("no/such/file")).expect_err("missing");
        assert_eq!(missing.code, ErrorCode::IoFailed);
    }
}
