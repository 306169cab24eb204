//! A process in a pod's cgroup has the names that the API server gives its container on every metric.

use super::{daemon::Daemon, host, victim::Victim};
use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    path::PathBuf,
    process,
    thread::{self, JoinHandle},
};

/// A cgroup as the kubelet makes one for a container, removed at the end.
struct Container {
    id: String,
    pod: PathBuf,
}

impl Container {
    /// `None` where this host has no second version of cgroups.
    fn new() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts.lines().find(|line| line.starts_with("cgroup2 "))?;
        let id = format!("{:064x}", process::id());
        let uid = format!("0a1b2c3d-1111-2222-3333-{:012x}", process::id());
        let pod = PathBuf::from(mount.split(' ').nth(1)?).join(format!("kubepods/burstable/pod{uid}"));
        fs::create_dir_all(pod.join(&id)).unwrap();
        Some(Self { id, pod })
    }

    fn adopt(&self, tgid: u32) {
        fs::write(self.pod.join(&self.id).join("cgroup.procs"), tgid.to_string()).unwrap();
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // The two outer folders may be another's by now; what is not empty stays.
        let _busy = fs::remove_dir(self.pod.join(&self.id));
        for folder in self.pod.ancestors().take(3) {
            let _busy = fs::remove_dir(folder);
        }
    }
}

/// Answers one request as an API server whose node runs this container alone.
fn api_server(container: &str) -> (String, JoinHandle<String>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let list = serde_json::json!({"kind": "PodList", "items": [{
        "metadata": {"name": "web-1", "namespace": "shop"},
        "status": {"containerStatuses": [{"name": "app", "containerID": format!("containerd://{container}")}]},
    }]})
    .to_string();
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(&stream);
        let mut request = String::new();
        while !request.ends_with("\r\n\r\n") {
            assert_ne!(reader.read_line(&mut request).unwrap(), 0, "the request ended");
        }
        let length = list.len();
        write!(&stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{list}").unwrap();
        request
    });
    (address, server)
}

#[test]
fn the_names_of_a_pod_are_on_the_metrics_of_its_processes() {
    let test = "the_names_of_a_pod_are_on_the_metrics_of_its_processes";
    let Some(path) = host::victim_for(test, "leaky_registry") else {
        return;
    };
    // After the victim is killed, an empty cgroup can be removed: so it is made before, and dropped after.
    let Some(container) = Container::new() else {
        return host::skip(test, "needs cgroup version 2");
    };
    let mut victim = Victim::start(&path, &[]);
    let tgid = victim.tgid();
    container.adopt(tgid);
    victim.await_ready();

    let (api_server, server) = api_server(&container.id);
    let folder = tempfile::tempdir().unwrap();
    let token_file = folder.path().join("token");
    fs::write(&token_file, "t0ken").unwrap();
    let config = folder.path().join("leakmon.toml");
    let text = format!(
        "interval = \"1s\"\n[kubernetes]\npods = true\nnode = \"node-7\"\napi_server = {api_server:?}\ntoken_file = {token_file:?}\n"
    );
    fs::write(&config, text).unwrap();
    let daemon = Daemon::start(&["--config", config.to_str().unwrap(), "--pid", &tgid.to_string()]);
    victim.go_on();
    victim.await_ready();
    victim.go_on();
    daemon.await_report("the names", |report| {
        let targets = report.0["targets"].as_array().unwrap();
        let mut mine = targets.iter().filter(|target| target["pid"] == tgid);
        mine.any(|target| target["kubernetes"]["pod"] == "web-1" && target["task"]["spawned"].as_u64() > Some(0))
    });
    let metrics = daemon.get("/metrics");
    let spawned = format!(r#"leakmon_tasks_spawned_total{{process="leaky_registry",pid="{tgid}""#);
    let mine: Vec<&str> = metrics.lines().filter(|line| line.starts_with(&spawned)).collect();
    assert!(!mine.is_empty(), "{metrics}");
    for line in mine {
        assert!(
            line.contains(r#"namespace="shop",pod="web-1",container="app"}"#),
            "{line}"
        );
    }
    let request = server.join().unwrap();
    assert!(request.contains("spec.nodeName%3Dnode-7"), "{request}");
    daemon.stop();
    victim.kill();
}
