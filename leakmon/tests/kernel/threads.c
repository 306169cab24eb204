// Leaks threads: `accept_one` starts one that never ends, `compute_one` one that does.
//
// It works in phases, one for each line of its input, and prints `ready` after each. The line says what to do: nothing more
// (empty), `leader` ends the first thread, `exec` has another thread execute the program anew.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char **arguments;

static void *wait_for_ever(void *unused) {
    for (;;) pause();
    return unused;
}

static void *end_at_once(void *unused) { return unused; }

static void *execute(void *unused) {
    execv("/proc/self/exe", arguments);
    return unused;
}

static __attribute__((noinline)) void accept_one(void) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, wait_for_ever, NULL)) abort();
}

static __attribute__((noinline)) void compute_one(void) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, end_at_once, NULL)) abort();
    pthread_join(thread, NULL);
}

static void phase(void) {
    for (int i = 0; i < 5; i++) accept_one();
    for (int i = 0; i < 4; i++) compute_one();
    puts("ready");
    fflush(stdout);
}

static void *serve(void *unused) {
    char line[80];
    phase();
    while (fgets(line, sizeof line, stdin)) {
        if (!strcmp(line, "exec\n")) {
            pthread_t thread;
            pthread_create(&thread, NULL, execute, NULL);
            pause();
        }
        phase();
    }
    exit(0);
    return unused;
}

int main(int count, char **given) {
    (void)count;
    arguments = given;
    char line[80];
    phase();
    while (fgets(line, sizeof line, stdin)) {
        if (!strcmp(line, "leader\n")) {
            pthread_t thread;
            if (pthread_create(&thread, NULL, serve, NULL)) abort();
            pthread_exit(NULL);
        }
        if (!strcmp(line, "exec\n")) {
            pthread_t thread;
            if (pthread_create(&thread, NULL, execute, NULL)) abort();
            pause();
        }
        phase();
    }
    return 0;
}
