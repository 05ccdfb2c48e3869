//! Calls per second and megabytes per second of one session, between two processes on this
//! machine: `cargo run --release -p volley-link --example link_bench`.
//!
//! The child is the server; it gets its identity through the pipe at its standard input.

#![allow(clippy::print_stdout)]

use std::{
    error::Error,
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use volley_link::{
    BulkPriority, ClusterCa, Connected, Endpoint, Identity, LinkConfig, LinkRuntime, Role, Session,
};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// A request that wants its bytes back, and the notice that a bulk object has arrived.
const ECHO: u8 = 1;
const ARRIVED: u8 = 2;

const MIB: usize = 1 << 20;
const ADAPTER_BYTES: usize = 64 * MIB;
const TRAJECTORY_BYTES: usize = 16 << 10;

fn main() -> Outcome<()> {
    let server = std::env::args().nth(1).as_deref() == Some("server");
    let threads = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    if server {
        threads.block_on(serve())
    } else {
        threads.block_on(measure())
    }
}

/// Echoes control frames and acknowledges bulk objects until the session ends.
async fn serve() -> Outcome<()> {
    let identity = Identity::read_from(std::io::stdin())?;
    let runtime = LinkRuntime::start()?;
    let addr = ([127, 0, 0, 1], 0).into();
    let mut listener = Endpoint::listen(&runtime, addr, &identity, LinkConfig::default())?;
    println!("{}", listener.local_addr());
    std::io::stdout().flush()?;
    let Some(Connected {
        session,
        sender,
        mut receiver,
    }) = listener.accept().await
    else {
        return Ok(());
    };
    let acks = sender.clone();
    tokio::spawn(async move {
        while let Ok(mut object) = session.accept_bulk().await {
            let acks = acks.clone();
            tokio::spawn(async move {
                let mut len = 0u64;
                while let Ok(Some(chunk)) = object.read_chunk().await {
                    len += chunk.len() as u64;
                }
                acks.send(ARRIVED, &len.to_le_bytes()).await
            });
        }
    });
    while let Ok(Some(frame)) = receiver.recv().await {
        sender.send(ECHO, &frame.payload).await?;
        while let Some(frame) = receiver.next_ready() {
            sender.send(ECHO, &frame.payload).await?;
        }
    }
    Ok(())
}

async fn measure() -> Outcome<()> {
    let ca = ClusterCa::create("bench")?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg("server")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let stdin = child.stdin.take().ok_or("the child has a pipe")?;
    ca.issue(Role::Coordinator, "bench")?.write_to(stdin)?;
    let mut addr = String::new();
    BufReader::new(child.stdout.take().ok_or("the child has a pipe")?).read_line(&mut addr)?;
    let addr = addr.trim().parse()?;

    let runtime = LinkRuntime::start()?;
    let identity = ca.issue(Role::Worker, "bench")?;
    let endpoint = Endpoint::client(&runtime, &identity, LinkConfig::default())?;
    let began = Instant::now();
    let mut link = endpoint.dial(addr, Role::Coordinator).await?;
    println!(
        "dial, ms                                 {:.2}",
        ms(began.elapsed())
    );
    for round in 1..=3 {
        println!("round {round}");
        sequential(&mut link, 5_000).await?;
        in_flight(&mut link, 64, 400_000).await?;
        in_flight(&mut link, 1024, 1_000_000).await?;
        adapters(&mut link, 5).await?;
        trajectories(&mut link, 8_000).await?;
        calls_during_bulk(&mut link, 1).await?;
        calls_during_bulk(&mut link, 4).await?;
    }
    endpoint.close(0, "").await;
    child.wait()?;
    Ok(())
}

async fn sequential(link: &mut Connected, calls: usize) -> Outcome<()> {
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls {
        times.push(call(link).await?);
    }
    times.sort_unstable();
    let (p50, p99) = (times[calls / 2], times[calls * 99 / 100]);
    println!(
        "  64 B call, sequential p50 / p99, us    {:.0} / {:.0}",
        us(p50),
        us(p99)
    );
    Ok(())
}

async fn call(link: &mut Connected) -> Outcome<Duration> {
    let began = Instant::now();
    link.sender.send(ECHO, &[0; 64]).await?;
    link.receiver.recv().await?.ok_or("the server went away")?;
    Ok(began.elapsed())
}

async fn in_flight(link: &mut Connected, window: usize, calls: usize) -> Outcome<()> {
    let began = Instant::now();
    for _ in 0..window {
        link.sender.send(ECHO, &[0; 64]).await?;
    }
    let mut sent = window;
    for _ in 0..calls {
        link.receiver.recv().await?.ok_or("the server went away")?;
        if sent < calls {
            link.sender.send(ECHO, &[0; 64]).await?;
            sent += 1;
        }
    }
    let rate = calls as f64 / began.elapsed().as_secs_f64();
    println!("  64 B call, {window:>4} in flight, calls/s       {rate:.0}");
    Ok(())
}

async fn push(session: &Session, object: Bytes, priority: BulkPriority) -> Outcome<()> {
    let mut bulk = session.open_bulk(priority).await?;
    bulk.write_chunk(object).await?;
    Ok(bulk.finish().await?)
}

async fn adapters(link: &mut Connected, count: usize) -> Outcome<()> {
    let object = Bytes::from(vec![7u8; ADAPTER_BYTES]);
    let mut rates = Vec::new();
    for _ in 0..count {
        let began = Instant::now();
        push(&link.session, object.clone(), BulkPriority::Background).await?;
        arrived(link).await?;
        rates.push((ADAPTER_BYTES as f64 / 1e6 / began.elapsed().as_secs_f64()) as u64);
    }
    rates.sort_unstable();
    println!("  64 MiB object, acknowledged, MB/s      {rates:?}");
    Ok(())
}

async fn trajectories(link: &mut Connected, count: usize) -> Outcome<()> {
    let object = Bytes::from(vec![7u8; TRAJECTORY_BYTES]);
    let session = link.session.clone();
    let began = Instant::now();
    let pushing = tokio::spawn(async move {
        for _ in 0..count {
            push(&session, object.clone(), BulkPriority::Normal).await?;
        }
        Outcome::Ok(())
    });
    for _ in 0..count {
        arrived(link).await?;
    }
    pushing.await??;
    let rate = (count * TRAJECTORY_BYTES) as f64 / 1e6 / began.elapsed().as_secs_f64();
    println!("  {count} x 16 KiB, one stream each, MB/s   {rate:.0}");
    Ok(())
}

async fn arrived(link: &mut Connected) -> Outcome<()> {
    let frame = link.receiver.recv().await?.ok_or("the server went away")?;
    (frame.kind == ARRIVED)
        .then_some(())
        .ok_or_else(|| "not an acknowledgement".into())
}

async fn calls_during_bulk(link: &mut Connected, objects: usize) -> Outcome<()> {
    let object = Bytes::from(vec![7u8; ADAPTER_BYTES]);
    for _ in 0..objects {
        let (session, object) = (link.session.clone(), object.clone());
        tokio::spawn(async move { push(&session, object, BulkPriority::Background).await });
    }
    let mut pending = objects;
    let mut times = Vec::new();
    while pending > 0 {
        let began = Instant::now();
        link.sender.send(ECHO, &[0; 64]).await?;
        loop {
            let frame = link.receiver.recv().await?.ok_or("the server went away")?;
            if frame.kind == ECHO {
                break;
            }
            pending -= 1;
        }
        times.push(began.elapsed());
    }
    times.sort_unstable();
    let p50 = ms(times[times.len() / 2]);
    let worst = ms(*times.last().ok_or("at least one call was made")?);
    println!("  64 B call during {objects} x 64 MiB, p50/max, ms  {p50:.2} / {worst:.1}");
    Ok(())
}

fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
