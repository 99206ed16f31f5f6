//! The real binary, serving on a free port; ended when the value is dropped.
#![allow(dead_code)] // Each test binary uses a part.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

/// What begins the line that a server says when it is ready.
const READY: &str = "ready: ";

/// A running `tallow serve`.
pub(crate) struct Server {
    child: Child,
    /// `http://127.0.0.1:PORT`
    pub url: String,
    pub http: reqwest::Client,
}

impl Server {
    /// Starts the binary with these arguments after `serve --port 0`, and waits until it is ready.
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::start_with(args, &[])
    }

    /// The same with something in its environment.
    pub(crate) fn start_with(args: &[&str], env: &[(&str, &str)]) -> Self {
        Self::spawn(command(), args, env, Stdio::inherit())
    }

    /// The same with its log to read.
    pub(crate) fn start_piped(args: &[&str], log: Stdio) -> (Self, std::process::ChildStderr) {
        let mut server = Self::spawn(command(), args, &[], log);
        let log = server.child.stderr.take().expect("a pipe");
        (server, log)
    }

    /// The same within `bounds`, said in the words of bash, with its log to read.
    pub(crate) fn start_bounded(bounds: &str, args: &[&str]) -> (Self, std::process::ChildStderr) {
        let mut command = Command::new("bash");
        command.args(["-c", &format!("{bounds}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_tallow")]);
        let mut server = Self::spawn(command, args, &[], Stdio::piped());
        let log = server.child.stderr.take().expect("a pipe");
        (server, log)
    }

    fn spawn(command: Command, args: &[&str], env: &[(&str, &str)], log: Stdio) -> Self {
        let mut child = launch(command, args, env, log);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut url = String::new();
        loop {
            let line = lines.next().expect("the server is ready before it ends").unwrap();
            if let Some(address) = line.strip_prefix("listening on ") {
                url = address.to_owned();
            }
            if line.starts_with(READY) {
                break;
            }
        }
        // Drained on a thread, or the server would block on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, url, http: reqwest::Client::builder().no_proxy().build().unwrap() }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by its name, as `kill` takes it.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the process to end by itself.
    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }

    /// The value of one metric, over all models.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = self.http.get(format!("{}/metrics", self.url)).send().await.unwrap().text().await.unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| line.split([' ', '{']).next() == Some(name)).collect();
        assert!(!lines.is_empty(), "no metric {name} in\n{text}");
        lines.iter().map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
    }

    /// Starts a chat completion; the answer's head is there, its body is not read yet.
    pub(crate) async fn chat(&self, body: &Value) -> reqwest::Response {
        let response = self.http.post(format!("{}/v1/chat/completions", self.url)).json(body).send().await.unwrap();
        assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
        response
    }
}

/// A `tallow serve` that nobody has waited for.
pub(crate) struct Launched(Child);

impl Launched {
    /// Starts the binary with these arguments after `serve --port 0`.
    pub(crate) fn start(args: &[&str]) -> Self {
        Self(launch(command(), args, &[], Stdio::inherit()))
    }

    /// Kills it as it stands; says whether it was ready.
    pub(crate) fn kill(mut self) -> bool {
        self.0.kill().unwrap();
        let mut said = String::new();
        self.0.stdout.take().expect("a pipe").read_to_string(&mut said).unwrap();
        self.0.wait().unwrap();
        said.lines().any(|line| line.starts_with(READY))
    }
}

fn command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tallow"))
}

fn launch(mut command: Command, args: &[&str], env: &[(&str, &str)], log: Stdio) -> Child {
    // None of this machine's settings but the place of the weights.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TALLOW_") && name != "TALLOW_CACHE_DIR" {
            command.env_remove(name);
        }
    }
    command
        .args(["serve", "--host", "127.0.0.1", "--port", "0"])
        .args(args)
        .envs(env.iter().copied())
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .unwrap()
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
