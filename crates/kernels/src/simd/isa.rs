//! Which instruction set to use: the widest that the CPU has, or a lower one on request.

use std::fmt;

#[cfg(target_arch = "x86_64")]
use super::{Avx2, Avx512};
#[cfg(target_arch = "aarch64")]
use super::{NeonDotprod, NeonI8mm, NeonWidening};
use crate::{Error, Result};

/// The proof that this CPU has an instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa(IsaLevel);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IsaLevel {
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(Avx512<true>),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512<false>),
    #[cfg(target_arch = "x86_64")]
    AvxVnni(Avx2<true>),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2<false>),
    #[cfg(target_arch = "aarch64")]
    NeonI8mm(NeonI8mm),
    #[cfg(target_arch = "aarch64")]
    NeonDotprod(NeonDotprod),
    #[cfg(target_arch = "aarch64")]
    Neon(NeonWidening),
    Portable,
}

impl Isa {
    /// The widest set of this CPU, or the one that the environment variable `TALLOW_ISA` names.
    ///
    /// # Errors
    /// If `TALLOW_ISA` names a set that is unknown or absent here.
    pub fn from_env() -> Result<Self> {
        match std::env::var("TALLOW_ISA") {
            Err(_) => Ok(Self::detect()),
            Ok(name) if name.is_empty() => Ok(Self::detect()),
            Ok(name) => Self::by_name(&name),
        }
    }

    /// The widest set of this CPU.
    pub fn detect() -> Self {
        Self::all_here()[0]
    }

    /// Plain loops.
    pub fn portable() -> Self {
        Self(IsaLevel::Portable)
    }

    /// Every set of this CPU, the widest first; [`Isa::portable`] is always the last.
    pub fn all_here() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(Avx512::<true>::detect().map(|s| Self(IsaLevel::Avx512Vnni(s))));
            all.extend(Avx512::<false>::detect().map(|s| Self(IsaLevel::Avx512(s))));
            all.extend(Avx2::<true>::detect().map(|s| Self(IsaLevel::AvxVnni(s))));
            all.extend(Avx2::<false>::detect().map(|s| Self(IsaLevel::Avx2(s))));
        }
        #[cfg(target_arch = "aarch64")]
        {
            all.extend(NeonI8mm::detect().map(|s| Self(IsaLevel::NeonI8mm(s))));
            all.extend(NeonDotprod::detect().map(|s| Self(IsaLevel::NeonDotprod(s))));
            all.extend(NeonWidening::detect().map(|s| Self(IsaLevel::Neon(s))));
        }
        all.push(Self::portable());
        all
    }

    fn by_name(name: &str) -> Result<Self> {
        let all = Self::all_here();
        all.iter().copied().find(|isa| isa.to_string() == name).ok_or_else(|| {
            let here: Vec<String> = all.iter().map(ToString::to_string).collect();
            Error::UnknownIsa { known: here.join(", "), got: name.to_owned() }
        })
    }

    pub(crate) fn level(self) -> IsaLevel {
        self.0
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            #[cfg(target_arch = "x86_64")]
            IsaLevel::Avx512Vnni(_) => "avx512-vnni",
            #[cfg(target_arch = "x86_64")]
            IsaLevel::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            IsaLevel::AvxVnni(_) => "avx-vnni",
            #[cfg(target_arch = "x86_64")]
            IsaLevel::Avx2(_) => "avx2",
            #[cfg(target_arch = "aarch64")]
            IsaLevel::NeonI8mm(_) => "neon-i8mm",
            #[cfg(target_arch = "aarch64")]
            IsaLevel::NeonDotprod(_) => "neon-dotprod",
            #[cfg(target_arch = "aarch64")]
            IsaLevel::Neon(_) => "neon",
            IsaLevel::Portable => "portable",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_found_by_its_name_and_an_unknown_one_is_refused() {
        for isa in Isa::all_here() {
            assert_eq!(Isa::by_name(&isa.to_string()), Ok(isa));
        }
        let error = Isa::by_name("mmx").expect_err("unknown");
        assert!(error.to_string().contains("portable"), "{error}");
        assert!(error.to_string().contains("mmx"), "{error}");
    }
}
