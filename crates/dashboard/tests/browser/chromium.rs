//! Debian's headless Chromium, driven over its debugging pipe (Chrome DevTools Protocol: JSON, each message ended with a NUL).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const PROGRAM: &str = "chromium-headless-shell";

/// A page in a browser of its own; both end when it is dropped.
pub struct Page {
    _child: Child,
    _folder: tempfile::TempDir,
    send: pipe::Sender,
    receive: BufReader<pipe::Receiver>,
    session: Option<String>,
    next: u64,
    /// What the browser told of its own accord.
    pub events: Vec<Value>,
}

impl Page {
    /// A browser with an empty page of this size.
    pub async fn open(width: u32, height: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["commands", "events"] {
            mknodat(CWD, at(name), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        }
        let both = |path: &Path| {
            let mut options = pipe::OpenOptions::new();
            // Opened for both, it waits for nobody.
            options.read_write(true);
            (options.open_sender(path).unwrap(), options.open_receiver(path).unwrap())
        };
        let (send, _) = both(&at("commands"));
        let (_, receive) = both(&at("events"));
        // The browser reads from descriptor 3 and writes to 4.
        let mut command = Command::new("sh");
        command.args(["-c", r#"exec "$@" 3<"$0/commands" 4>"$0/events""#]).arg(folder.path()).arg(PROGRAM);
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]);
        command.args(["--remote-debugging-pipe", "--hide-scrollbars", "--force-color-profile=srgb", "--lang=en-GB"]);
        command.arg(format!("--user-data-dir={}", at("profile").display())).env("TZ", "UTC").env("LANG", "en_GB.UTF-8");
        command
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        let child = command.kill_on_drop(true).spawn().unwrap();
        let receive = BufReader::new(receive);
        let mut page =
            Self { _child: child, _folder: folder, send, receive, session: None, next: 0, events: Vec::new() };
        let target = page.call("Target.createTarget", json!({"url": "about:blank"})).await;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = page.call("Target.attachToTarget", attach).await;
        page.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network", "Accessibility"] {
            page.call(&format!("{domain}.enable"), json!({})).await;
        }
        page.resize(width, height).await;
        page
    }

    pub async fn resize(&mut self, width: u32, height: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// Calls a method of the protocol.
    pub async fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.next += 1;
        let id = self.next;
        let mut message = json!({"id": id, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.send.write_all(&bytes).await.unwrap();
        loop {
            let told = self.hear().await;
            if told["id"] == json!(id) {
                assert!(told.get("error").is_none(), "{method}: {told}");
                return told["result"].clone();
            }
            self.events.push(told);
        }
    }

    async fn hear(&mut self) -> Value {
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(PATIENCE, self.receive.read_until(0, &mut bytes)).await;
        read.expect("Debian's chromium-headless-shell answers; `cargo xtask test` installs it").unwrap();
        bytes.pop();
        serde_json::from_slice(&bytes).unwrap()
    }

    /// What a script of the page's own comes to.
    pub async fn ask(&mut self, script: &str) -> Value {
        let ask = json!({"expression": script, "returnByValue": true, "awaitPromise": true});
        let told = self.call("Runtime.evaluate", ask).await;
        assert!(told.get("exceptionDetails").is_none(), "{script}: {told}");
        told["result"]["value"].clone()
    }

    /// Asks until it is true.
    pub async fn until(&mut self, script: &str) {
        let asked = tokio::time::timeout(PATIENCE, async {
            // Between two pages there may be nothing to ask.
            let patient = format!("(() => {{ try {{ return {script}; }} catch {{ return false; }} }})()");
            while self.ask(&patient).await != json!(true) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        if asked.await.is_err() {
            let shown = self.ask("document.body.innerText").await;
            panic!("never so: {script}\n{}", shown.as_str().unwrap());
        }
    }

    pub async fn go(&mut self, address: &str) {
        self.call("Page.navigate", json!({"url": address})).await;
    }

    /// Presses a key, as hands do.
    pub async fn press(&mut self, key: &str) {
        let (code, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            other => panic!("no key {other}"),
        };
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code});
            if kind == "keyDown" && !text.is_empty() {
                event["text"] = json!(text);
            }
            self.call("Input.dispatchKeyEvent", event).await;
        }
    }

    /// What somebody without eyes finds: role and name of everything that is there, in order.
    pub async fn heard(&mut self) -> Vec<(String, String)> {
        let tree = self.call("Accessibility.getFullAXTree", json!({})).await;
        let nodes = tree["nodes"].as_array().unwrap().iter().filter(|node| node["ignored"] == json!(false));
        let text = |value: &Value| value["value"].as_str().unwrap_or_default().to_owned();
        nodes.map(|node| (text(&node["role"]), text(&node["name"]))).collect()
    }

    /// Light or dark.
    pub async fn scheme(&mut self, scheme: &str) {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", features).await;
    }

    /// A picture of the whole page, in a folder.
    pub async fn picture(&mut self, folder: &Path, name: &str) {
        // A frame later what was asked for is drawn.
        self.ask("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))").await;
        let shot = self.call("Page.captureScreenshot", json!({"format": "png"})).await;
        let bytes = BASE64.decode(shot["data"].as_str().unwrap()).unwrap();
        std::fs::write(folder.join(format!("{name}.png")), bytes).unwrap();
    }

    /// Everything that went wrong in the page: errors of scripts, what was refused.
    pub fn complaints(&self) -> Vec<&Value> {
        let wrong = |event: &&Value| match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Log.entryAdded") => event["params"]["entry"]["level"] == "error",
            Some("Runtime.consoleAPICalled") => event["params"]["type"] == "error",
            _ => false,
        };
        self.events.iter().filter(wrong).collect()
    }
}
