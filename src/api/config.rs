//! What an operator may set of the HTTP server.

use std::time::Duration;

use super::auth::ApiKey;
use super::responses::ResponseLimits;
use crate::settings;
use crate::settings::{COUNT_MAX, GIB, HOUR_MS, KIB, Kind, MIB, bytes, common, count, millis, setting};

settings! {
    /// Bounds and habits of the HTTP server.
    #[derive(Debug, Clone, PartialEq)]
    pub struct ApiConfig {
        /// Most open connections.
        ///
        /// More wait in the kernel's backlog.
        pub connections_max: usize = 4096
            => setting("server.connections_max", "connections-max", count(1, COUNT_MAX, "connections"));
        /// Of one address, but for loopback; 0 is no bound, for a proxy on another machine.
        pub connections_per_address_max: usize = 1024 => setting(
            "server.connections_per_address_max",
            "connections-per-address-max",
            count(0, COUNT_MAX, "connections")
        );
        /// Longest request body.
        pub body_bytes_max: usize = 4 << 20 => setting("server.body_bytes_max", "body-bytes-max", bytes(KIB, GIB));
        /// Longest request head; also the send buffer of a slow connection.
        pub header_bytes_max: usize = 16 << 10
            => setting("server.header_bytes_max", "header-bytes-max", bytes(KIB, MIB));
        /// The kernel's send buffer of a connection: its default would take megabytes for a client that does not read, and
        /// this is more than a stream writes in seconds.
        pub send_buffer_bytes: usize = 64 << 10;
        /// Close a connection that has read nothing for this long.
        pub write_stall_timeout: Duration = Duration::from_secs(30)
            => setting("server.write_stall_timeout_ms", "write-stall-timeout-ms", millis(1, HOUR_MS));
        /// Send a heartbeat on an event stream after this much silence.
        pub heartbeat: Duration = Duration::from_secs(15)
            => setting("server.heartbeat_ms", "heartbeat-ms", millis(100, HOUR_MS));
        /// How long a chat stream waits for its first token before it answers 200, so that early failures get an error status.
        pub head_wait: Duration = Duration::from_secs(15)
            => setting("server.head_wait_ms", "head-wait-ms", millis(0, HOUR_MS));
        /// How long running streams may go on after SIGTERM or SIGINT.
        pub drain_timeout: Duration = Duration::from_secs(30)
            => common("server.drain_timeout_ms", "drain-timeout-ms", millis(0, HOUR_MS));
        /// How long connections then have to receive the end of their streams: it is one event, so this is for round trips
        /// and not for readers.
        pub close_timeout: Duration = Duration::from_secs(5);
        /// Time limit for a request head, and for an idle connection.
        pub header_read_timeout: Duration = Duration::from_secs(60)
            => setting("server.header_read_timeout_ms", "header-read-timeout-ms", millis(100, HOUR_MS));
        /// Time limit for a request body.
        pub body_read_timeout: Duration = Duration::from_secs(30)
            => setting("server.body_read_timeout_ms", "body-read-timeout-ms", millis(100, HOUR_MS));
        /// How often retention and lingering are looked at: fine beside the seconds that they are set in, and a sweep is cheap.
        pub sweep_interval: Duration = Duration::from_millis(250);
        /// Origins that browsers may call from, or *; none by default.
        ///
        /// None: only the server's own page.
        pub cors_origins: Vec<String> = Vec::new() => common("server.cors_origins", "cors-origins", Kind::List);
        /// Host names the server answers to; on loopback, or if any are given, only these and localhost.
        pub allowed_hosts: Vec<String> = Vec::new() => setting("server.allowed_hosts", "allowed-hosts", Kind::List);
        /// The keys, one of which every request must bring. Empty: everybody is one anonymous owner.
        pub keys: Vec<ApiKey> = Vec::new();
        /// Requests of one key that may be open at once, streams that it follows too; 0 is no bound.
        pub open_requests_max: usize = 1024
            => setting("keys.open_requests_max", "key-open-requests-max", count(0, COUNT_MAX, "requests"));
        /// What one owner's stored responses may hold beside their streams.
        pub responses: ResponseLimits = ResponseLimits::default();
        /// Memory limit for all request bodies in progress, half of it for one key; beyond it 429 or 503.
        pub bodies_bytes_max: usize = 256 << 20
            => setting("memory.bodies_bytes_max", "bodies-bytes-max", bytes(MIB, 1024 * GIB));
        /// Memory limit for all large answers not yet read, half of it for one key; beyond it 429 or 503.
        ///
        /// Event streams apart.
        pub answers_bytes_max: usize = 256 << 20
            => setting("memory.answers_bytes_max", "answers-bytes-max", bytes(MIB, 1024 * GIB));
    }
}
