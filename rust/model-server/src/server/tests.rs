use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use http::Request;
use tokio::net::UnixStream;

use super::*;
use crate::testing::{LIMITS, fp64, request, signature, spec, temporary};

fn server(name: &str) -> ModelServer {
    ModelServer::new(Config {
        socket_path: temporary(&format!("{name}.sock")),
        executing_path: temporary(&format!("{name}.executing")),
        message_bytes_max: 1 << 20,
        queue_bytes_max: 1 << 20,
        limits: LIMITS,
        stuck_after: Duration::from_millis(200),
    })
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let limited = async { tokio::time::timeout(Duration::from_secs(30), test).await };
    runtime.block_on(limited).unwrap();
}

async fn connect(server: &ModelServer) -> (SendRequest<Bytes>, JoinSet<Result<(), h2::Error>>) {
    let socket = UnixStream::connect(&server.config.socket_path)
        .await
        .unwrap();
    let (client, connection) = h2::client::handshake(socket).await.unwrap();
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    (client, driver)
}

fn call(client: &mut SendRequest<Bytes>, method: &str) -> ResponseFuture {
    let uri = format!("http://worker/inference.GRPCInferenceService/{method}");
    let request = Request::post(uri).header("content-type", "application/grpc");
    let (response, mut body) = client
        .send_request(request.body(()).unwrap(), false)
        .unwrap();
    body.send_data(Bytes::from_static(&[0; 5]), true).unwrap();
    response
}

#[test]
fn a_panic_closes_its_connection_and_no_other() {
    let server = server("panic");
    server.start().unwrap();
    run(async {
        let (mut unlucky, mut unlucky_driver) = connect(&server).await;
        let (mut other, _driver) = connect(&server).await;
        assert_eq!(
            call(&mut unlucky, "ServerLive").await.unwrap().status(),
            200
        );
        assert_eq!(call(&mut other, "ServerLive").await.unwrap().status(), 200);
        assert!(call(&mut unlucky, "Panic").await.is_err());
        assert!(unlucky_driver.join_next().await.is_some());
        assert_eq!(call(&mut other, "ServerLive").await.unwrap().status(), 200);
    });
    server.stop(Duration::ZERO);
    assert_eq!(server.stats().connections, 0);
    std::fs::remove_file(&server.config.executing_path).unwrap();
}

#[test]
fn broken_messages_and_calls_that_are_none_get_an_answer() {
    let server = server("broken");
    server.start().unwrap();
    let cases: [(&[u8], &str, &str); 8] = [
        (b"", "3", "ended before its message was complete"),
        (b"\0\0\0", "3", "ended before its message was complete"),
        (
            b"\0\0\0\0\x09short",
            "3",
            "ended before its message was complete",
        ),
        (b"\x07\0\0\0\0", "3", "not framed as gRPC"),
        (b"\x01\0\0\0\0", "12", "uncompressed"),
        (b"\0\0\0\0\0\0\0\0\0\0", "3", "more than one message"),
        (
            b"\0\xff\xff\xff\xff",
            "8",
            "over the limit of 1048576 bytes",
        ),
        (b"\0\0\0\0\x02\x0a\x05", "3", "not a ModelInferRequest"),
    ];
    run(async {
        let (mut client, _driver) = connect(&server).await;
        for (message, code, words) in cases {
            let uri = "http://worker/inference.GRPCInferenceService/ModelInfer";
            let request = Request::post(uri).header("content-type", "application/grpc+proto");
            let request = request.body(()).unwrap();
            let (response, mut body) = client.send_request(request, false).unwrap();
            // One byte per frame: nothing may depend on how a message is cut.
            for byte in message {
                body.send_data(Bytes::copy_from_slice(&[*byte]), false)
                    .unwrap();
            }
            // The server may have answered and closed the stream by now.
            let _ = body.send_data(Bytes::new(), true);
            let response = response.await.unwrap();
            let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
            assert_eq!(header("grpc-status"), code, "{message:?}");
            assert!(header("grpc-message").contains(words), "{response:?}");
        }
        let request = Request::post("http://worker/").header("content-type", "text/plain");
        let (response, _) = client
            .send_request(request.body(()).unwrap(), true)
            .unwrap();
        assert_eq!(response.await.unwrap().status(), 415);
    });
    server.stop(Duration::ZERO);
    std::fs::remove_file(&server.config.executing_path).unwrap();
}

#[test]
fn who_waits_for_a_batch_that_does_not_end_is_told() {
    let server = server("stuck");
    let rows = signature(&[spec("x", None, &[-1, 2])], &[], true);
    server.add_model("called", 1, rows);
    server.start().unwrap();
    let message = request(vec![fp64("x", &[1, 2], &[1.0, 2.0])], &[]).encode();
    let message = crate::encode::framed(&message).unwrap();
    run(async {
        let (mut client, _driver) = connect(&server).await;
        for _ in 0..2 {
            let uri = "http://worker/inference.GRPCInferenceService/ModelInfer";
            let head = Request::post(uri).header("content-type", "application/grpc");
            let (response, mut body) = client.send_request(head.body(()).unwrap(), false).unwrap();
            body.send_data(message.clone(), true).unwrap();
            let stuck = async {
                let taken = || server.next_batch(Duration::ZERO);
                loop {
                    match taken() {
                        Some(batch) => return batch,
                        None => tokio::task::yield_now().await,
                    }
                }
            };
            let mut stuck = stuck.await;
            let response = response.await.unwrap();
            assert_eq!(response.headers()["grpc-status"], "4");
            let told = response.headers()["grpc-message"].to_str().unwrap();
            assert!(
                told.contains("called did not answer within 0.2 s"),
                "{told}"
            );
            // What it says when it ends after all is for nobody.
            assert_eq!(stuck.fail(Code::Internal, "late"), Ok(true));
        }
    });
    server.stop(Duration::ZERO);
    std::fs::remove_file(&server.config.executing_path).unwrap();
}

#[test]
fn sockets_are_served_whoever_drives() {
    let server = server("drives");
    let rows = signature(&[spec("x", None, &[-1, 2])], &[], true);
    server.add_model("called", 1, rows);
    server.start().unwrap();
    let message = request(vec![fp64("x", &[1, 2], &[1.0, 2.0])], &[]).encode();
    let message = crate::encode::framed(&message).unwrap();
    let (running, mut is_running) = tokio::sync::mpsc::unbounded_channel();
    let (go_on, may_go_on) = std::sync::mpsc::channel();
    std::thread::scope(|threads| {
        let server = &server;
        threads.spawn(move || {
            // Each drives until its batch is there, runs it until it is told, and sends the answer back by driving again.
            while let Some(mut batch) = server.next_batch(Duration::from_secs(20)) {
                running.send(()).unwrap();
                may_go_on.recv().unwrap();
                batch.fail(Code::InvalidArgument, "as agreed").unwrap();
            }
        });
        run(async {
            let (mut client, _driver) = connect(server).await;
            for _ in 0..5 {
                let uri = "http://worker/inference.GRPCInferenceService/ModelInfer";
                let head = Request::post(uri).header("content-type", "application/grpc");
                let (response, mut body) =
                    client.send_request(head.body(()).unwrap(), false).unwrap();
                body.send_data(message.clone(), true).unwrap();
                is_running.recv().await.unwrap();
                let live = call(&mut client, "ServerLive").await.unwrap();
                assert_eq!(live.status(), 200, "the spare thread answers meanwhile");
                go_on.send(()).unwrap();
                assert_eq!(response.await.unwrap().headers()["grpc-status"], "3");
            }
        });
        server.stop(Duration::ZERO);
    });
    std::fs::remove_file(&server.config.executing_path).unwrap();
}

#[test]
fn it_stops_while_somebody_asks_for_batches_without_end() {
    let enough = Instant::now() + Duration::from_secs(10);
    for round in 0..20 {
        let server = server(&format!("asked-{round}"));
        server.start().unwrap();
        let stopped = AtomicBool::new(false);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                while !stopped.load(Ordering::Relaxed) && Instant::now() < enough {
                    assert!(server.next_batch(Duration::from_secs(20)).is_none());
                }
            });
            server.stop(Duration::ZERO);
            stopped.store(true, Ordering::Relaxed);
        });
        std::fs::remove_file(&server.config.executing_path).unwrap();
    }
    assert!(
        Instant::now() < enough,
        "the spare thread never saw that all was done"
    );
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let first = server("stale");
    drop(StdUnixListener::bind(&first.config.socket_path).unwrap());
    first.start().unwrap();
    assert_eq!(
        first.start().unwrap_err().kind(),
        io::ErrorKind::AlreadyExists
    );
    let second = server("stale");
    assert_eq!(second.start().unwrap_err().kind(), io::ErrorKind::AddrInUse);
    drop(second);
    let mode = std::fs::metadata(&first.config.socket_path)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    first.stop(Duration::ZERO);
    first.stop(Duration::ZERO);
    assert!(!first.config.socket_path.exists());
    std::fs::remove_file(&first.config.executing_path).unwrap();
}
