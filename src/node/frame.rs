//! Frames between nodes, and between a node and `ctl`: a length as u32 big-endian, then that many bytes of one message.
//!
//! The length is a stranger's claim until the bytes are there: it is checked against the connection's limit, and
//! memory is taken as bytes arrive, not as they are announced.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::durus::TRANSACTION_BYTES_MOST;
use crate::proto::control::Lane;

/// Longest hello.
pub const HELLO_BYTES_MAX: u32 = 4 << 10;
/// Longest request of an administrator's tool.
pub const ADMIN_BYTES_MAX: u32 = 1 << 20;
/// A commit of a client is one message: its records, and in the other half what surrounds them, and what the client may
/// have read.
const LIVE_BYTES_MAX: u32 = 2 * TRANSACTION_BYTES_MOST as u32;
const BYTES_MAX: u32 = 16 << 20;

/// Room that is made ahead of the bytes, at least and at most.
const READ_BYTES_MIN: usize = 64 << 10;
const READ_BYTES_MAX: usize = 1 << 20;

/// What went wrong with the bytes of a connection; the connection is of no use afterwards.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the connection ended inside a frame, after {got} of its bytes")]
    Truncated { got: usize },
    #[error("a frame of {len} bytes is announced, at most {max} are allowed here")]
    TooLong { len: u32, max: u32 },
    #[error("the frame is no {what}: {source}")]
    Malformed { what: &'static str, source: prost::DecodeError },
}

/// Longest frame on a lane.
pub fn bytes_max(lane: Lane) -> u32 {
    match lane {
        // A registration names the oids that all sessions of a node hold.
        Lane::Live | Lane::Requests => LIVE_BYTES_MAX,
        Lane::Control | Lane::Bulk => BYTES_MAX,
    }
}

/// Appends the message as a frame.
pub fn encode(message: &impl Message, out: &mut BytesMut) {
    let len = message.encoded_len();
    out.reserve(4 + len);
    out.put_u32(u32::try_from(len).expect("we make no message of 4 GiB"));
    message.encode(out).expect("a BytesMut grows");
}

/// The message that a frame is.
pub fn decode<M: Message + Default>(what: &'static str, frame: Bytes) -> Result<M, FrameError> {
    M::decode(frame).map_err(|source| FrameError::Malformed { what, source })
}

/// Takes frames out of a stream of bytes.
pub struct FrameReader<R> {
    from: R,
    buf: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub fn new(from: R) -> Self {
        FrameReader { from, buf: BytesMut::new() }
    }

    /// The next frame, without its length; `None` when the stream ends between two frames. May be dropped and called
    /// again: nothing is lost.
    pub async fn next(&mut self, max: u32) -> Result<Option<Bytes>, FrameError> {
        loop {
            let missing = match take(&mut self.buf, max)? {
                Taken::Frame(frame) => return Ok(Some(frame)),
                Taken::Missing(missing) => missing,
            };
            self.buf.reserve(missing.clamp(READ_BYTES_MIN, READ_BYTES_MAX));
            if self.from.read_buf(&mut self.buf).await? == 0 {
                return ended(&self.buf).map(|()| None);
            }
        }
    }

    /// The stream, and what was read of it beyond the last frame.
    pub fn into_parts(self) -> (R, BytesMut) {
        (self.from, self.buf)
    }
}

/// What a buffer begins with.
pub enum Taken {
    /// Without its length; it is not in the buffer any more.
    Frame(Bytes),
    /// A part of a frame: so many bytes are missing at least.
    Missing(usize),
}

/// Takes a frame off the beginning of what was read.
pub fn take(buf: &mut BytesMut, max: u32) -> Result<Taken, FrameError> {
    let Some(mut head) = buf.get(..4) else { return Ok(Taken::Missing(4 - buf.len())) };
    let len = head.get_u32();
    if len > max {
        return Err(FrameError::TooLong { len, max });
    }
    let whole = 4 + len as usize;
    if buf.len() < whole {
        return Ok(Taken::Missing(whole - buf.len()));
    }
    buf.advance(4);
    Ok(Taken::Frame(buf.split_to(len as usize).freeze()))
}

/// The stream has ended with this left: an error inside a frame.
pub fn ended(rest: &[u8]) -> Result<(), FrameError> {
    match rest.len() {
        0 => Ok(()),
        got => Err(FrameError::Truncated { got }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::control::Hello;
    use tokio::io::AsyncWriteExt;

    /// What a reader makes of these bytes followed by the end of the stream.
    fn read_all(bytes: &[u8], max: u32) -> Result<Vec<Bytes>, FrameError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut write, read) = tokio::io::duplex(7);
            let bytes = bytes.to_vec();
            let writer = tokio::spawn(async move { write.write_all(&bytes).await });
            let mut reader = FrameReader::new(read);
            let mut frames = Vec::new();
            let end = loop {
                match reader.next(max).await {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break Ok(frames),
                    Err(error) => break Err(error),
                }
            };
            drop(reader);
            let _ = writer.await.unwrap();
            end
        })
    }

    #[test]
    fn known_bytes() {
        let hello = Hello { protocol_version: 1, cluster: "c".into(), node: 2, ..Hello::default() };
        let mut out = BytesMut::new();
        encode(&hello, &mut out);
        assert_eq!(&out[..], b"\0\0\0\x07\x08\x01\x12\x01c\x18\x02");
        let frames = read_all(&out, 100).unwrap();
        assert_eq!(decode::<Hello>("hello", frames[0].clone()).unwrap(), hello);
    }

    #[test]
    fn several_frames_in_small_pieces() {
        let bytes = b"\0\0\0\x02ab\0\0\0\0\0\0\0\x0a0123456789";
        assert_eq!(read_all(bytes, 10).unwrap(), [&b"ab"[..], b"", b"0123456789"]);
        assert!(read_all(b"", 10).unwrap().is_empty());
    }

    #[test]
    fn what_is_wrong_is_said() {
        let cases: [(&[u8], &str); 4] = [
            (b"GET / HTTP/1.1\r\n\r\n", "a frame of 1195725856 bytes is announced, at most 10"),
            (b"\0\0\0\x0b0123456789a", "a frame of 11 bytes is announced"),
            (b"\0\0\0\x050123", "ended inside a frame, after 8 of its bytes"),
            (b"\0\0", "ended inside a frame, after 2 of its bytes"),
        ];
        for (bytes, wanted) in cases {
            let error = read_all(bytes, 10).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        let error = decode::<Hello>("hello", Bytes::from_static(b"\xff\xff")).unwrap_err();
        assert!(error.to_string().starts_with("the frame is no hello:"), "{error}");
    }
}
