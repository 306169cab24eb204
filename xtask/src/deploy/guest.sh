#!/bin/bash
# Runs in the guest once it has booted: the package's own unit, a victim, a daemon that hangs. Each finding is a line `VM: …` on the
# console, which `cargo xtask vm` reads. Whatever happens, the guest ends.
say() { echo "VM: $*" >/dev/ttyS0; }
ask() {
    exec 3<>/dev/tcp/127.0.0.1/5325 || return 1
    printf 'GET %s HTTP/1.0\r\n\r\n' "$1" >&3
    sed -e '1,/^\r$/d' <&3
    exec 3>&-
}
# Once a second, for two minutes: emulation is slow.
await() {
    for _ in $(seq 120); do
        "$@" && return 0
        sleep 1
    done
    say "gave up waiting for: $*"
    return 1
}
trap 'journalctl -u leakmon --no-pager -o cat >/dev/ttyS0; systemctl --force poweroff' EXIT

say "kernel $(uname -r), $(systemctl --version | head -1)"
# Type=notify: this returns when the daemon has said READY.
systemctl start leakmon || { say "leakmon did not start"; exit 1; }
say "ready $(systemctl show leakmon -p ActiveState -p SubState -p StatusText | tr '\n' ' ')"

mkfifo /run/in /run/out
/usr/bin/victim --wait </run/in >/run/out &
victim=$!
exec 4>/run/in 5</run/out
read -r line <&5
seen() { ask /api/v1/report | grep -q "\"pid\":$victim,"; }
echo >&4
read -r line <&5
echo >&4
read -r truth <&5
say "truth $truth"
number() { echo "$truth" | sed -n "s/.*$1\([0-9]*\).*/\1/p"; }
# The runtime's own tasks are counted, and are not in the victim's record.
total=$(($(number '"phase2":{[^}]*},"spawned":') + $(number '"runtime_tasks":')))
counted() { ask "/api/v1/report" | grep -q "\"spawned\": *$total[,}]"; }
await counted
say "report $(ask /api/v1/report | tr -d '\n')"

systemctl reload leakmon && say "reloaded $(systemctl is-active leakmon)"

before=$(systemctl show leakmon -p MainPID --value)
kill -STOP "$before"
restarted() { [ "$(systemctl show leakmon -p NRestarts --value)" -ge 1 ] && [ "$(systemctl is-active leakmon)" = active ]; }
await restarted
after=$(systemctl show leakmon -p MainPID --value)
say "restarted from $before to $after, $(journalctl -u leakmon --no-pager -o cat | grep -i -m1 watchdog)"
kill -0 "$victim" && say "victim lives"
say "done"
