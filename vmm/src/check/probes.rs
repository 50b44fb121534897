//! The guests: a few bytes of 64-bit kernel-mode code each, the registers they start with, and the right answer.
//!
//! Encodings follow the Intel SDM, volume 2. Every guest leaves its answer in RAX and halts.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::Kvm;

/// Instructions per round of [`arithmetic`].
pub(super) const ARITHMETIC_INSTRUCTIONS_PER_ROUND: u64 = 3;

/// Guest address, 64-byte aligned, of zeroed memory that guests may write to; RSI holds it.
pub(super) const SCRATCH: u64 = 0x2000;

/// A guest.
pub(super) struct Program {
    pub(super) name: &'static str,
    /// KVM says that guests have the instruction.
    pub(super) offered: bool,
    pub(super) code: &'static [u8],
    pub(super) rax: u64,
    pub(super) rbx: u64,
    pub(super) rcx: u64,
    pub(super) expected: u64,
    /// Whether CR4.OSXSAVE must be set.
    pub(super) uses_xsave: bool,
}

const PLAIN: Program = Program {
    name: "",
    offered: true,
    code: &[],
    rax: 0,
    rbx: 0,
    rcx: 0,
    expected: 0,
    uses_xsave: false,
};

/// Adds up the numbers from `rounds` down to 1.
pub(super) fn arithmetic(rounds: u64) -> Program {
    Program {
        name: "arithmetic",
        code: &[
            0x48, 0x01, 0xc8, // add rax, rcx
            0x48, 0xff, 0xc9, // dec rcx
            0x75, 0xf8, //       jnz to the add
            0xf4, //             hlt
        ],
        rcx: rounds,
        expected: rounds * (rounds + 1) / 2,
        ..PLAIN
    }
}

/// One guest per instruction that desktops' kernels use and an emulator may lack.
pub(super) fn programs(kvm: &Kvm) -> Vec<Program> {
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).ok();
    let has = |leaf, register, bit| {
        cpuid
            .as_ref()
            .is_some_and(|cpuid| bit_of(cpuid, leaf, register, bit))
    };
    let vendor = cpuid
        .as_ref()
        .and_then(|cpuid| register_of(cpuid, 0, Register::Ebx))
        .unwrap_or_default();
    vec![
        Program {
            name: "cpuid",
            offered: cpuid.is_some(),
            code: &[
                0x0f, 0xa2, //       cpuid
                0x48, 0x89, 0xd8, // mov rax, rbx
                0xf4, //             hlt
            ],
            expected: u64::from(vendor),
            ..PLAIN
        },
        Program {
            name: "popcnt",
            offered: has(1, Register::Ecx, 23),
            code: &[
                0xf3, 0x48, 0x0f, 0xb8, 0xc1, // popcnt rax, rcx
                0xf4, //                         hlt
            ],
            rcx: 0xf0f0_0000_0000_0001,
            expected: 9,
            ..PLAIN
        },
        Program {
            // Without BMI1 the same bytes are `rep bsf`, which leaves RAX alone when the source is zero.
            name: "tzcnt",
            offered: has(7, Register::Ebx, 3),
            code: &[
                0xf3, 0x48, 0x0f, 0xbc, 0xc1, // tzcnt rax, rcx
                0xf4, //                         hlt
            ],
            rax: 0x1234,
            rcx: 0,
            expected: 64,
            ..PLAIN
        },
        Program {
            // Without ABM the same bytes are `rep bsr`, which finds the index of the bit: 0.
            name: "lzcnt",
            offered: has(0x8000_0001, Register::Ecx, 5),
            code: &[
                0xf3, 0x48, 0x0f, 0xbd, 0xc1, // lzcnt rax, rcx
                0xf4, //                         hlt
            ],
            rcx: 1,
            expected: 63,
            ..PLAIN
        },
        Program {
            name: "sse2",
            offered: has(1, Register::Edx, 26),
            code: &[
                0x66, 0x48, 0x0f, 0x6e, 0xc1, // movq xmm0, rcx
                0x66, 0x0f, 0xd4, 0xc0, //       paddq xmm0, xmm0
                0x66, 0x48, 0x0f, 0x7e, 0xc0, // movq rax, xmm0
                0xf4, //                         hlt
            ],
            rcx: 21,
            expected: 42,
            ..PLAIN
        },
        Program {
            name: "crc32",
            offered: has(1, Register::Ecx, 20),
            code: &[
                0xf2, 0x0f, 0x38, 0xf1, 0xc1, // crc32 eax, ecx
                0xf4, //                         hlt
            ],
            rcx: 0x1234_5678,
            expected: u64::from(crc32c_step(0x1234_5678)),
            ..PLAIN
        },
        Program {
            name: "cmpxchg16b",
            offered: has(1, Register::Ecx, 13),
            code: &[
                0x48, 0x0f, 0xc7, 0x0e, // cmpxchg16b [rsi], which holds zeroes like RDX:RAX
                0x48, 0x8b, 0x06, //       mov rax, [rsi]
                0xf4, //                   hlt
            ],
            rbx: 7,
            rcx: 5,
            expected: 7,
            ..PLAIN
        },
        Program {
            name: "xsave",
            offered: has(1, Register::Ecx, 26),
            code: &[
                0x0f, 0xae, 0x26, //             xsave [rsi], of the x87 state (RDX:RAX = 1)
                0xb8, 0x2a, 0x00, 0x00, 0x00, // mov eax, 42
                0xf4, //                         hlt
            ],
            rax: 1,
            expected: 42,
            uses_xsave: true,
            ..PLAIN
        },
        Program {
            name: "rdtscp",
            offered: has(0x8000_0001, Register::Edx, 27),
            code: &[
                0x0f, 0x01, 0xf9, //             rdtscp
                0xb8, 0x2a, 0x00, 0x00, 0x00, // mov eax, 42
                0xf4, //                         hlt
            ],
            expected: 42,
            ..PLAIN
        },
    ]
}

/// What `crc32 eax, ecx` makes of `value`, with EAX 0: CRC-32C, reflected, neither complemented.
const fn crc32c_step(value: u32) -> u32 {
    let mut crc = value;
    let mut bit = 0;
    while bit < 32 {
        crc = (crc >> 1) ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
        bit += 1;
    }
    crc
}

#[derive(Clone, Copy)]
enum Register {
    Ebx,
    Ecx,
    Edx,
}

fn register_of(cpuid: &CpuId, leaf: u32, register: Register) -> Option<u32> {
    let entry = cpuid
        .as_slice()
        .iter()
        .find(|entry| entry.function == leaf && entry.index == 0)?;
    Some(match register {
        Register::Ebx => entry.ebx,
        Register::Ecx => entry.ecx,
        Register::Edx => entry.edx,
    })
}

fn bit_of(cpuid: &CpuId, leaf: u32, register: Register, bit: u32) -> bool {
    register_of(cpuid, leaf, register).is_some_and(|value| value >> bit & 1 == 1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::crc32c_step;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_expected_crc_is_what_this_processor_computes() {
        if std::arch::is_x86_feature_detected!("sse4.2") {
            // SAFETY: the line above says that the processor has the instruction.
            let processor = unsafe { std::arch::x86_64::_mm_crc32_u32(0, 0x1234_5678) };
            assert_eq!(processor, crc32c_step(0x1234_5678));
        }
        assert_eq!(crc32c_step(1), 0xdd45_aab8);
    }
}
