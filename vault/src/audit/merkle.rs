//! RFC 6962 hashing: leaves, nodes and the frontier of a growing tree.

use sha2::{Digest as _, Sha256};

pub(super) type Hash = [u8; 32];

/// Hash of a record's line, without its newline.
pub(super) fn leaf(line: &[u8]) -> Hash {
    Sha256::new()
        .chain_update([0])
        .chain_update(line)
        .finalize()
        .into()
}

fn node(left: &Hash, right: &Hash) -> Hash {
    Sha256::new()
        .chain_update([1])
        .chain_update(left)
        .chain_update(right)
        .finalize()
        .into()
}

/// The roots of the complete subtrees of a tree, largest first: all that is needed to go on.
#[derive(Clone, Debug, Default)]
pub(super) struct Frontier {
    size: u64,
    peaks: Vec<Hash>,
}

impl Frontier {
    pub(super) fn push(&mut self, leaf: Hash) {
        let mut hash = leaf;
        let mut complete = self.size;
        while complete & 1 == 1 {
            let left = self
                .peaks
                .pop()
                .expect("one peak for each bit that is set in the size");
            hash = node(&left, &hash);
            complete >>= 1;
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn root(&self) -> Hash {
        let mut peaks = self.peaks.iter().rev();
        let Some(smallest) = peaks.next() else {
            return Sha256::digest([]).into();
        };
        peaks.fold(*smallest, |right, left| node(left, &right))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The recursive definition of RFC 6962, 2.1.
    fn definition(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => Sha256::digest([]).into(),
            [only] => *only,
            _ => {
                let split = leaves.len().next_power_of_two() / 2;
                node(&definition(&leaves[..split]), &definition(&leaves[split..]))
            }
        }
    }

    #[test]
    fn the_frontier_gives_the_root_of_the_definition() {
        let mut frontier = Frontier::default();
        let mut leaves = Vec::new();
        for number in 0..200u32 {
            assert_eq!(frontier.root(), definition(&leaves), "{number} leaves");
            let hash = leaf(&number.to_be_bytes());
            leaves.push(hash);
            frontier.push(hash);
            assert_eq!(frontier.size(), leaves.len() as u64);
        }
    }

    #[test]
    fn roots_are_those_of_the_reference_tree() {
        // The test vectors of the reference implementation of RFC 6962.
        let inputs = [
            "",
            "00",
            "10",
            "2021",
            "3031",
            "40414243",
            "5051525354555657",
            "606162636465666768696a6b6c6d6e6f",
        ];
        let roots = [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let mut frontier = Frontier::default();
        for (input, root) in inputs.iter().zip(roots) {
            frontier.push(leaf(&hex::decode(input).unwrap()));
            assert_eq!(hex::encode(frontier.root()), root);
        }
    }
}
