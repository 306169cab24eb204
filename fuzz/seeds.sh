#!/usr/bin/env bash
# Makes the seeds of the fuzz targets anew: small ELF files that hold what leakmon looks for. Needs cc, binutils
# and Python; the vdso is the running kernel's. No input.
set -euo pipefail
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT

# One task vtable of tokio's shape (seven functions, then trailer, scheduler and id offsets), a function that allocates
# a cell of its size and puts the vtable there, one that completes a task, a path that tells the version.
cat >"$work/task.s" <<'S'
    .text
    .globl _start
_start:
    .cfi_startproc
    call spawn
    hlt
    .cfi_endproc

    .type spawn, @function
spawn:
    .cfi_startproc
    push %rbx
    .cfi_def_cfa_offset 16
    .cfi_offset %rbx, -16
    sub $16, %rsp
    .cfi_def_cfa_offset 32
    mov $256, %edi
    mov $128, %esi
    call allocate
    test %rax, %rax
    je 1f
    lea vtable(%rip), %rcx
    movq $204, (%rax)
    movq $0, 8(%rax)
    mov %rcx, 16(%rax)
    add $16, %rsp
    .cfi_def_cfa_offset 16
    pop %rbx
    .cfi_def_cfa_offset 8
    ret
    .cfi_def_cfa_offset 32
1:  ud2
    .cfi_endproc

    .type allocate, @function
allocate:
    .cfi_startproc
    push %rbp
    .cfi_def_cfa_offset 16
    .cfi_offset %rbp, -16
    mov %rsp, %rbp
    .cfi_def_cfa_register %rbp
    lea heap(%rip), %rax
    pop %rbp
    .cfi_def_cfa %rsp, 8
    ret
    .cfi_endproc

    .type _ZN5tokio7runtime4task5state5State22transition_to_complete17h0123456789abcdefE, @function
_ZN5tokio7runtime4task5state5State22transition_to_complete17h0123456789abcdefE:
    .cfi_startproc
    mov (%rdi), %rax
2:  mov %rax, %rcx
    xor $3, %rcx
    lock cmpxchg %rcx, (%rdi)
    jne 2b
    ret
    .cfi_endproc

    .irp name, poll, schedule, dealloc, output, slow, abort, shutdown
    .type \name, @function
\name:
    .cfi_startproc
    ret
    .cfi_endproc
    .endr

    .section .rodata
    .ascii "/tokio-1.54.1/src/runtime/task/core.rs"
    .section .data.rel.ro, "aw"
    .balign 8
vtable:
    .quad poll, schedule, dealloc, output, slow, abort, shutdown
    .quad 0xd8, 0x20, 0x28
    .bss
    .balign 128
heap:
    .skip 256
    .section .note.GNU-stack, ""
S

# Inlined functions, two files' lines, a recursive type.
cat >"$work/debug.c" <<'C'
struct node { struct node *next; long value; };
static inline __attribute__((always_inline)) long value(struct node *node) { return node ? node->value * 3 : 1; }
static inline __attribute__((always_inline)) long two(struct node *node) { return value(node) + value(node->next); }
__attribute__((noinline)) long sum(struct node *node, long deep) {
    volatile long total = two(node);
    if (deep > 0)
        total += sum(node->next, deep - 1);
    return total;
}
void _start(void) {
    struct node node = {&node, 7};
    sum(&node, 3);
    for (;;) {
    }
}
C

link() { cc -nostdlib -pie -Wl,-z,noseparate-code,-z,max-page-size=4096,--build-id=sha1,--hash-style=gnu "$@"; }
compile() { cc -c -ffreestanding -fno-ident -fno-stack-protector -fPIE -O1 -gno-record-gcc-switches "$@"; }
debug() {
    (cd "$work" && compile -ffile-prefix-map="$work"=/src "$@" debug.c -o debug.o)
    link "$work/debug.o" -o "$work/$name"
}

(cd "$work" && as task.s -o task.o)
link -Wl,-z,separate-code "$work/task.o" -o "$work/task"
link -s "$work/task.o" -o "$work/task-stripped"
link -s -Wl,-z,pack-relative-relocs "$work/task.o" -o "$work/task-packed"
link -s -Wl,--no-eh-frame-hdr "$work/task.o" -o "$work/task-without-index"
for name in dwarf4 dwarf5; do debug "-g${name/dwarf/dwarf-}"; done
name=dwarf5-symbols && debug -gdwarf-5 -g1
objcopy --compress-debug-sections=zlib "$work/dwarf5" "$work/dwarf5-compressed"
objcopy --strip-all --add-gnu-debuglink="$work/dwarf5" "$work/dwarf5" "$work/linked"
python3 - "$work" <<'P'
import sys
work = sys.argv[1]
image = bytearray(open(work + "/task-stripped", "rb").read())
image[40:48] = bytes(8)  # e_shoff
image[60:64] = bytes(4)  # e_shnum, e_shstrndx
open(work + "/task-without-sections", "wb").write(image)
at = next(line.split()[0] for line in open("/proc/self/maps") if "[vdso]" in line)
start, end = (int(part, 16) for part in at.split("-"))
with open("/proc/self/mem", "rb") as memory:
    memory.seek(start)
    open(work + "/vdso", "wb").write(memory.read(end - start))
P

mkdir -p seeds/{image_scanner,unwind_tables,names}
for kind in task task-stripped task-packed task-without-index task-without-sections dwarf5-symbols vdso; do
    for target in image_scanner unwind_tables; do cp "$work/$kind" seeds/$target/; done
done
for kind in task linked dwarf4 dwarf5 dwarf5-symbols dwarf5-compressed vdso; do cp "$work/$kind" seeds/names/; done
cp symbols.txt seeds/names/symbols
split --lines=1 --suffix-length=2 symbols.txt seeds/names/symbol-
