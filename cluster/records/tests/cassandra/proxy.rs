use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
};

/// Of a frame of CQL, version 4: version, flags, stream (2), opcode, length (4).
const HEADER: usize = 9;
const RESULT: u8 = 0x08;

/// Passes CQL on to a server, and loses its results while told to: what the server has done then stays done.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    losing: AtomicBool,
    lost: AtomicU32,
}

impl Proxy {
    pub(crate) fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let state = Arc::new(State::default());
        let shared = state.clone();
        // It ends with the process, as do the threads for its connections.
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let state = shared.clone();
                thread::spawn(move || pass(near, server, &state));
            }
        });
        Self { port, state }
    }

    pub(crate) fn lose_results(&self, losing: bool) {
        self.state.losing.store(losing, Ordering::SeqCst);
    }

    /// How many results it has lost.
    pub(crate) fn lost(&self) -> u32 {
        self.state.lost.load(Ordering::SeqCst)
    }
}

/// Ends with either side.
fn pass(near: TcpStream, server: u16, state: &State) -> io::Result<()> {
    let far = TcpStream::connect(("127.0.0.1", server))?;
    let (mut requests, mut onward) = (near.try_clone()?, far.try_clone()?);
    thread::spawn(move || {
        // Either side may hang up at any time.
        let _ = io::copy(&mut requests, &mut onward);
        let _ = onward.shutdown(Shutdown::Both);
    });
    let ended = answers(&far, &near, state);
    near.shutdown(Shutdown::Both)?;
    ended
}

fn answers(mut far: &TcpStream, mut near: &TcpStream, state: &State) -> io::Result<()> {
    loop {
        let mut frame = vec![0; HEADER];
        far.read_exact(&mut frame)?;
        let length = u32::from_be_bytes([frame[5], frame[6], frame[7], frame[8]]) as usize;
        frame.resize(HEADER + length, 0);
        far.read_exact(&mut frame[HEADER..])?;
        if frame[4] == RESULT && state.losing.load(Ordering::SeqCst) {
            state.lost.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        near.write_all(&frame)?;
    }
}
