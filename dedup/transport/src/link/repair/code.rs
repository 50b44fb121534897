//! Erasure code over a block of bytes: any `k` of `k + r` symbols give the block back.
//!
//! Systematic Reed–Solomon in Cauchy form over GF(2^8) (Blömer et al., "An XOR-based erasure-resilient coding scheme", ICSI TR-95-048,
//! 1995): repair symbol `i` is the sum over data symbols `j` of `d[j] / (x[i] + y[j])`, with `x[i] = 255 - i` and `y[j] = j`. Each
//! square part of such a matrix is invertible, so repair symbols are worth the same whichever arrive, and the sender need not
//! say how many it made. Invariant: `j < DATA_MAX` and `i < REPAIR_MAX` never name the same field element.
//!
//! It corrects losses, not errors: what comes out is as right as what went in, and is checked by its reader.

use std::sync::OnceLock;

/// Most data symbols of a block.
pub(super) const DATA_MAX: usize = 224;
/// Most repair symbols of a block.
pub(super) const REPAIR_MAX: usize = 32;

/// The field's polynomial: x^8 + x^4 + x^3 + x^2 + 1, for which 2 generates all elements.
const POLYNOMIAL: u16 = 0x11d;

struct Field {
    exp: [u8; 512],
    log: [u8; 256],
}

fn field() -> &'static Field {
    static FIELD: OnceLock<Field> = OnceLock::new();
    FIELD.get_or_init(|| {
        let mut field = Field {
            exp: [0; 512],
            log: [0; 256],
        };
        let mut value: u16 = 1;
        for power in 0..255 {
            field.exp[power] = value as u8;
            field.exp[power + 255] = value as u8;
            field.log[usize::from(value)] = power as u8;
            value <<= 1;
            if value & 0x100 != 0 {
                value ^= POLYNOMIAL;
            }
        }
        field
    })
}

impl Field {
    fn product(&self, a: u8, b: u8) -> u8 {
        if a == 0 || b == 0 {
            return 0;
        }
        self.exp[usize::from(self.log[usize::from(a)]) + usize::from(self.log[usize::from(b)])]
    }

    fn inverse(&self, a: u8) -> u8 {
        debug_assert_ne!(a, 0, "zero has no inverse");
        self.exp[255 - usize::from(self.log[usize::from(a)])]
    }

    /// `to += factor × from`, element by element.
    fn add_scaled(&self, to: &mut [u8], from: &[u8], factor: u8) {
        if factor == 0 {
            return;
        }
        // One row of the multiplication table, so that the loop is a look-up and an exclusive or.
        let row: [u8; 256] = std::array::from_fn(|value| self.product(value as u8, factor));
        for (to, from) in to.iter_mut().zip(from) {
            *to ^= row[usize::from(*from)];
        }
    }
}

fn coefficient(repair: usize, data: usize) -> u8 {
    debug_assert!(repair < REPAIR_MAX && data < DATA_MAX, "beyond the code");
    field().inverse((255 - repair) as u8 ^ data as u8)
}

/// Repair symbols `first..first + count` of a block cut into symbols of `symbol_bytes`, the last one padded with zeros.
pub(super) fn encode(block: &[u8], symbol_bytes: usize, count: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|repair| {
            let mut symbol = vec![0; symbol_bytes];
            for (data, part) in block.chunks(symbol_bytes).enumerate() {
                field().add_scaled(&mut symbol, part, coefficient(repair, data));
            }
            symbol
        })
        .collect()
}

/// Finds the `missing` data symbols from as many of the `repair` symbols (number, bytes). `present` gives the others, and is not asked
/// for missing ones. `None` if there are fewer repair symbols than missing ones.
pub(super) fn decode<'a>(
    data_count: usize,
    symbol_bytes: usize,
    missing: &[usize],
    repair: &[(u8, impl AsRef<[u8]>)],
    present: impl Fn(usize) -> &'a [u8],
) -> Option<Vec<Vec<u8>>> {
    let field = field();
    let unknowns = missing.len();
    let rows = repair.get(..unknowns)?;
    // What each repair symbol says about the missing ones alone.
    let mut sums: Vec<Vec<u8>> = rows
        .iter()
        .map(|(_, symbol)| symbol.as_ref().to_vec())
        .collect();
    for data in (0..data_count).filter(|data| missing.binary_search(data).is_err()) {
        let part = present(data);
        for (sum, (number, _)) in sums.iter_mut().zip(rows) {
            field.add_scaled(sum, part, coefficient(usize::from(*number), data));
        }
    }
    let inverse = inverse_of(
        rows.iter()
            .map(|(number, _)| {
                missing
                    .iter()
                    .map(|data| coefficient(usize::from(*number), *data))
                    .collect()
            })
            .collect(),
    )?;
    Some(
        inverse
            .iter()
            .map(|row| {
                let mut symbol = vec![0; symbol_bytes];
                for (factor, sum) in row.iter().zip(&sums) {
                    field.add_scaled(&mut symbol, sum, *factor);
                }
                symbol
            })
            .collect(),
    )
}

/// Gauss–Jordan elimination; `None` for a matrix that has no inverse, which a Cauchy matrix of different rows always has.
fn inverse_of(mut matrix: Vec<Vec<u8>>) -> Option<Vec<Vec<u8>>> {
    let field = field();
    let size = matrix.len();
    let mut inverse: Vec<Vec<u8>> = (0..size)
        .map(|row| (0..size).map(|column| u8::from(row == column)).collect())
        .collect();
    for column in 0..size {
        let pivot = (column..size).find(|row| matrix[*row][column] != 0)?;
        matrix.swap(column, pivot);
        inverse.swap(column, pivot);
        let scale = field.inverse(matrix[column][column]);
        for side in [&mut matrix[column], &mut inverse[column]] {
            for value in side.iter_mut() {
                *value = field.product(*value, scale);
            }
        }
        for row in 0..size {
            let factor = matrix[row][column];
            if row == column || factor == 0 {
                continue;
            }
            for side in [&mut matrix, &mut inverse] {
                let from = side[column].clone();
                field.add_scaled(&mut side[row], &from, factor);
            }
        }
    }
    Some(inverse)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A seeded generator (xorshift64*), so that a failure repeats.
    fn random(state: &mut u64) -> u64 {
        *state ^= *state >> 12;
        *state ^= *state << 25;
        *state ^= *state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    #[test]
    fn any_losses_up_to_the_number_of_repair_symbols_are_made_good() {
        for seed in 1..200u64 {
            let mut state = seed;
            let symbol_bytes = 1 + (random(&mut state) % 40) as usize;
            let data_count = 1 + (random(&mut state) as usize) % DATA_MAX;
            let spare = (random(&mut state) as usize) % symbol_bytes;
            let block: Vec<u8> = (0..data_count * symbol_bytes - spare)
                .map(|_| random(&mut state) as u8)
                .collect();
            let mut repair: Vec<(u8, Vec<u8>)> = (0..)
                .zip(encode(&block, symbol_bytes, REPAIR_MAX))
                .collect();
            // Any of them, in any order.
            for i in (1..repair.len()).rev() {
                repair.swap(i, (random(&mut state) as usize) % (i + 1));
            }
            let lost = (random(&mut state) as usize) % (data_count.min(REPAIR_MAX) + 1);
            let mut missing: Vec<usize> = (0..data_count).collect();
            for i in (1..data_count).rev() {
                missing.swap(i, (random(&mut state) as usize) % (i + 1));
            }
            missing.truncate(lost);
            missing.sort_unstable();
            let symbols: Vec<&[u8]> = block.chunks(symbol_bytes).collect();
            let present = |data: usize| {
                assert!(
                    !missing.contains(&data),
                    "seed {seed}: asked for a lost symbol"
                );
                symbols[data]
            };
            let found = decode(data_count, symbol_bytes, &missing, &repair, present).unwrap();
            for (data, bytes) in missing.iter().zip(found) {
                let due = symbols[*data];
                assert_eq!(&bytes[..due.len()], due, "seed {seed}, symbol {data}");
                assert!(bytes[due.len()..].iter().all(|b| *b == 0), "seed {seed}");
            }
        }
    }

    #[test]
    fn fewer_repair_symbols_than_losses_give_nothing() {
        let block = [7; 100];
        let repair: Vec<(u8, Vec<u8>)> = (0..).zip(encode(&block, 10, 2)).collect();
        let present = |data: usize| &block[data * 10..][..10];
        assert!(decode(10, 10, &[1, 2, 3], &repair, present).is_none());
        assert!(decode(10, 10, &[1, 2], &repair, present).is_some());
    }

    /// The code is part of the wire format: other ends must make the same symbols.
    #[test]
    fn golden_symbols() {
        let block: Vec<u8> = (0..10).collect();
        let symbols = encode(&block, 4, 2);
        assert_eq!(symbols, GOLDEN);
    }

    // Computed apart from this code, from the formula in docs/wire.md.
    const GOLDEN: [[u8; 4]; 2] = [[78, 50, 254, 125], [12, 240, 200, 75]];
}
