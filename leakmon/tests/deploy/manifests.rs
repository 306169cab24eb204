//! Kubernetes: the kustomize base and the Helm chart, for three versions.

use super::{deployed, succeeds, tool};
use std::{fs, path::Path, process::Command};

/// Supported ones: old, current, newest that the validator knows.
const VERSIONS: [&str; 3] = ["1.33", "1.35", "1.37"];

/// Kinds of its own that an operator brings; the validator has no schema for them.
const FOREIGN: &str = "PodMonitor";

fn validate(validator: &Path, name: &str, manifests: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(name);
    fs::write(&file, manifests).unwrap();
    for version in VERSIONS {
        let mut command = Command::new(validator);
        command.args(["--strict", "--kubernetes-version", version]).arg(&file);
        let said = succeeds(&mut command);
        let objects = manifests.lines().filter(|line| line.starts_with("kind: ")).count();
        let passed = said.lines().filter(|line| line.contains(" passed ")).count();
        let foreign = said
            .lines()
            .filter(|line| line.contains("find schema") && line.contains(FOREIGN))
            .count();
        assert_eq!(passed + foreign, objects, "{name} for {version}: {said}");
        assert!(foreign <= 1 && passed > 0, "{said}");
    }
}

#[test]
fn the_base_is_valid() {
    let test = "the_base_is_valid";
    let (Some(kubectl), Some(validator)) = (
        tool(test, "kubectl/kubectl"),
        tool(test, "python/bin/kubernetes-validate"),
    ) else {
        return;
    };
    let base = succeeds(Command::new(kubectl).arg("kustomize").arg(deployed("kubernetes/base")));
    validate(&validator, "base.yaml", &base);
}

#[test]
fn the_chart_is_valid_with_every_choice() {
    let test = "the_chart_is_valid";
    let (Some(helm), Some(validator)) = (tool(test, "helm/helm"), tool(test, "python/bin/kubernetes-validate")) else {
        return;
    };
    let chart = deployed("kubernetes/chart");
    succeeds(Command::new(&helm).args(["lint", "--strict"]).arg(&chart));
    let render = |settings: &[&str]| {
        let mut command = Command::new(&helm);
        command
            .args(["template", "release", "--namespace", "monitoring"])
            .arg(&chart);
        for setting in settings {
            command.args(["--set", setting]);
        }
        command
    };
    for (settings, has, has_not) in [
        (
            &[][..],
            &["kind: ClusterRole\n", "allow_open_listen = true"][..],
            &["PodMonitor", "web_config_file"][..],
        ),
        (
            &["podLabels=false"],
            &["kind: DaemonSet"],
            &["ClusterRole", "pods = true"],
        ),
        (&["podMonitor.enabled=true"], &["kind: PodMonitor"], &[]),
        (
            &["webConfigSecret=web", "probeScheme=HTTPS", "podMonitor.enabled=true"],
            &["web_config_file", "secretName: web", "scheme: HTTPS", "scheme: https"],
            &["allow_open_listen"],
        ),
        (
            &["serviceAccount.name=mine"],
            &["serviceAccountName: mine"],
            &["\nkind: ServiceAccount\n"],
        ),
    ] {
        let rendered = succeeds(&mut render(settings));
        for text in has {
            assert!(rendered.contains(text), "{settings:?} lacks {text}: {rendered}");
        }
        for text in has_not {
            assert!(!rendered.contains(text), "{settings:?} has {text}: {rendered}");
        }
        validate(&validator, "chart.yaml", &rendered);
    }
    // Neither protected nor allowed to be open: no chart.
    let refused = render(&["allowOpenListen=false"]).output().unwrap();
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("webConfigSecret"));
}

#[test]
fn the_configurations_of_the_manifests_are_understood() {
    let test = "the_configurations_of_the_manifests";
    let Some(helm) = tool(test, "helm/helm") else {
        return;
    };
    let chart = succeeds(
        Command::new(helm)
            .args(["template", "release"])
            .arg(deployed("kubernetes/chart")),
    );
    let base = fs::read_to_string(deployed("kubernetes/base/configmap.yaml")).unwrap();
    for manifest in [chart, base] {
        let (_, rest) = manifest.split_once("leakmon.toml: |\n").unwrap();
        let lines = rest
            .lines()
            .take_while(|line| line.is_empty() || line.starts_with("    "));
        let text: String = lines.map(|line| format!("{}\n", line.trim_start())).collect();
        let config: leakmon::config::Config = toml::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert!(config.kubernetes.pods && config.allow_open_listen, "{text}");
    }
}
