//! From the first instruction to ring 3.
//!
//! Where no hardware KVM is, ring 0 is emulated instruction by instruction and knows neither SSE nor much else, while ring 3 runs on the
//! processor itself. So ring 0 is only what is written out here: it opens all memory and all ports to ring 3, counts interrupts, and ends
//! the machine on an exception. Everything else is ordinary code in ring 3.

use core::arch::global_asm;
use core::ptr::addr_of;
use core::sync::atomic::{AtomicU32, Ordering};

/// Vectors that are counted: [`VECTOR_FIRST`] and those behind it.
pub const VECTORS: usize = 16;
/// The first of them.
pub const VECTOR_FIRST: u8 = 0x40;

const EXCEPTIONS: usize = 32;
/// Bytes from stub to stub.
const STUB_BYTES: usize = 32;
/// A gate of ring 0 through which interrupts come with others held back.
const INTERRUPT_GATE: u64 = 0x8e;
const KERNEL_CODE: u64 = 0x10;

const LOCAL_APIC: usize = 0xfee0_0000;
const APIC_SPURIOUS: usize = 0xf0;
/// The APIC is on; spurious interrupts come at vector 0xff, which has no gate and never comes.
const APIC_ON: u32 = 0x1ff;

global_asm!(
    r#"
    .section .text.start,"ax"
    .global start
start:
    cli
    mov %rsi, %r15
    lea stack_0_end(%rip), %rsp

    # The six pages of tables that the machine starts with lie behind each other: ring 3 may use what they map.
    mov %cr3, %rdi
    mov $(6 * 512), %ecx
1:  mov (%rdi), %rax
    test $1, %al
    jz 2f
    or $4, %al
    mov %rax, (%rdi)
2:  add $8, %rdi
    dec %ecx
    jnz 1b
    mov %cr3, %rax
    mov %rax, %cr3

    lea tss(%rip), %rax
    mov %ax, descriptors + 0x32(%rip)
    shr $16, %rax
    mov %al, descriptors + 0x34(%rip)
    mov %ah, descriptors + 0x37(%rip)
    lea stack_0_end(%rip), %rax
    mov %rax, tss + 4(%rip)
    movw $104, tss + 102(%rip)
    movb $0xff, tss + 104 + 8192(%rip)
    lgdt descriptors_place(%rip)
    mov $0x30, %ax
    ltr %ax
    lidt gates_place(%rip)

    # Floating point, as in any program.
    mov %cr4, %rax
    or $0x600, %eax
    mov %rax, %cr4
    mov %cr0, %rax
    and $-13, %rax
    or $0x22, %eax
    mov %rax, %cr0

    # No interrupts from the old controllers.
    mov $0xff, %al
    out %al, $0x21
    out %al, $0xa1

    mov %r15, %rdi
    pushq $0x23
    lea stack_3_end(%rip), %rax
    push %rax
    # Interrupts come in: there are none before the local APIC is on.
    pushq $0x202
    pushq $0x2b
    lea 3f(%rip), %rax
    push %rax
    iretq
3:  call guest_main
    ud2

    .balign 32
    .global exception_stubs
exception_stubs:
    .set number, 0
    .rept 32
    .balign 32
    mov $('A' + number), %bl
    jmp exception
    .set number, number + 1
    .endr

    # Tells which one it was, by a letter, and switches off.
exception:
    mov $0x3f8, %dx
    mov $'!', %al
    out %al, %dx
    mov %bl, %al
    out %al, %dx
    mov $'\n', %al
    out %al, %dx
    mov $0x604, %dx
    mov $0x3400, %ax
    out %ax, %dx
4:  hlt
    jmp 4b

    .balign 32
    .global interrupt_stubs
interrupt_stubs:
    .set place, 0
    .rept 16
    .balign 32
    push %rax
    incl interrupt_counts + place(%rip)
    mov $0xfee000b0, %eax
    movl $0, (%rax)
    pop %rax
    iretq
    .set place, place + 4
    .endr

    .section .data.start,"aw"
    .balign 16
descriptors:
    .quad 0, 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00cff3000000ffff
    .quad 0x00affb000000ffff
    # The task state: 104 bytes and a map of all ports; where, is filled in.
    .quad 0x0000890000002068, 0
descriptors_place:
    .word descriptors_place - descriptors - 1
    .quad descriptors
gates_place:
    .word 256 * 16 - 1
    .quad gates

    .section .bss.start,"aw",@nobits
    .balign 16
    .global gates
gates:
    .skip 256 * 16
    .global interrupt_counts
interrupt_counts:
    .skip 16 * 4
    .balign 16
tss:
    .skip 104
    # All ports are open.
    .skip 8192 + 8
    .balign 16
    .skip 4096
stack_0_end:
    .skip 65536
stack_3_end:
    .text
    "#,
    options(att_syntax)
);

unsafe extern "C" {
    static exception_stubs: u8;
    static interrupt_stubs: u8;
    static mut gates: [[u64; 2]; 256];
    static interrupt_counts: [AtomicU32; VECTORS];
}

fn gate(handler: usize) -> [u64; 2] {
    let at = handler as u64;
    let low = at & 0xffff | KERNEL_CODE << 16 | INTERRUPT_GATE << 40 | (at >> 16 & 0xffff) << 48;
    [low, at >> 32]
}

/// Has exceptions end the machine and interrupts counted; then lets them come.
pub fn open_gates() {
    let stubs = (addr_of!(exception_stubs), addr_of!(interrupt_stubs));
    let set = |vector: usize, handler: usize| {
        // SAFETY: there is one processor, and nobody else writes gates; vectors are below 256.
        unsafe { (&raw mut gates[vector]).write_volatile(gate(handler)) };
    };
    for number in 0..EXCEPTIONS {
        set(number, stubs.0 as usize + number * STUB_BYTES);
    }
    for number in 0..VECTORS {
        let vector = usize::from(VECTOR_FIRST) + number;
        set(vector, stubs.1 as usize + number * STUB_BYTES);
    }
    let apic = (LOCAL_APIC + APIC_SPURIOUS) as *mut u32;
    // SAFETY: the local APIC's register is mapped there; interrupts have gates.
    unsafe { apic.write_volatile(APIC_ON) };
}

/// No exception finds a gate any more.
pub fn close_gates() {
    for vector in 0..256 {
        // SAFETY: there is one processor, and nobody else writes gates.
        unsafe { (&raw mut gates[vector]).write_volatile([0; 2]) };
    }
}

/// Interrupts that have come at the vector of this number.
pub fn interrupts(number: usize) -> u32 {
    // SAFETY: counters of the assembly above, which are there for ever and only changed by single instructions.
    unsafe { interrupt_counts[number].load(Ordering::SeqCst) }
}
