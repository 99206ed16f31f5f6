//! Lengths in tokens as a distribution: `64`, `40..120` (uniform, both ends included) or `normal:80,20` (mean and
//! standard deviation).

use std::fmt;
use std::str::FromStr;

use super::draws::Draws;

/// Longest length that may be asked for.
pub(crate) const TOKENS_MAX: usize = 1_000_000;

/// How many tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Lengths {
    /// Always as many.
    Fixed(usize),
    /// Any number from the first to the second.
    Uniform(usize, usize),
    /// Around a mean, with a standard deviation; at least 1.
    Normal(f64, f64),
}

impl Lengths {
    /// One length, from 1 to `TOKENS_MAX`.
    pub fn draw(&self, draws: &mut Draws) -> usize {
        match *self {
            Self::Fixed(n) => n,
            Self::Uniform(low, high) => draws.between(low, high),
            Self::Normal(mean, deviation) => {
                (mean + deviation * draws.normal()).round().clamp(1.0, TOKENS_MAX as f64) as usize
            }
        }
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(n) => write!(f, "{n}"),
            Self::Uniform(low, high) => write!(f, "{low}..{high}"),
            Self::Normal(mean, deviation) => write!(f, "normal:{mean},{deviation}"),
        }
    }
}

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = || format!("must be like 64, 40..120 or normal:80,20, got `{text}`");
        let count = |part: &str| match part.trim().parse::<usize>() {
            Ok(n) if (1..=TOKENS_MAX).contains(&n) => Ok(n),
            Ok(n) => Err(format!("must be from 1 to {TOKENS_MAX}, got {n}")),
            Err(_) => Err(shape()),
        };
        if let Some(rest) = text.strip_prefix("normal:") {
            let (mean, deviation) = rest.split_once(',').ok_or_else(shape)?;
            let number = |part: &str| part.trim().parse::<f64>().map_err(|_| shape());
            let (mean, deviation) = (number(mean)?, number(deviation)?);
            if !(1.0..=TOKENS_MAX as f64).contains(&mean) {
                return Err(format!("the mean must be from 1 to {TOKENS_MAX}, got {mean}"));
            }
            if !(0.0..=TOKENS_MAX as f64).contains(&deviation) {
                return Err(format!("the deviation must be from 0 to {TOKENS_MAX}, got {deviation}"));
            }
            return Ok(Self::Normal(mean, deviation));
        }
        let Some((low, high)) = text.split_once("..") else { return Ok(Self::Fixed(count(text)?)) };
        let (low, high) = (count(low)?, count(high.strip_prefix('=').unwrap_or(high))?);
        if low > high {
            return Err(format!("must not end before it begins, got `{text}`"));
        }
        Ok(Self::Uniform(low, high))
    }
}

#[cfg(test)]
mod tests {
    use super::super::draws::Purpose;
    use super::*;

    #[track_caller]
    fn check(text: &str, expect: Result<Lengths, &str>) {
        match (text.parse::<Lengths>(), expect) {
            (Ok(got), Ok(expect)) => assert_eq!(got, expect, "{text}"),
            (Err(got), Err(expect)) => assert!(got.contains(expect), "{text}: {got}"),
            (got, expect) => panic!("{text}: got {got:?}, expected {expect:?}"),
        }
    }

    #[test]
    fn distributions_are_read() {
        check("64", Ok(Lengths::Fixed(64)));
        check("40..120", Ok(Lengths::Uniform(40, 120)));
        check("40..=120", Ok(Lengths::Uniform(40, 120)));
        check("5..5", Ok(Lengths::Uniform(5, 5)));
        check("normal:80,20", Ok(Lengths::Normal(80.0, 20.0)));
        check("normal: 80.5 , 0", Ok(Lengths::Normal(80.5, 0.0)));
        check("0", Err("from 1 to 1000000, got 0"));
        check("9..3", Err("must not end before it begins"));
        check("normal:0,1", Err("the mean must be from 1"));
        check("normal:NaN,1", Err("the mean must be from 1"));
        check("normal:5,-1", Err("the deviation must be from 0"));
        for bad in ["", "x", "-3", "3..", "..3", "normal:3", "normal:a,b", "1.5"] {
            check(bad, Err("must be like 64, 40..120 or normal:80,20"));
        }
    }

    #[test]
    fn draws_follow_the_distribution() {
        let draw = |text: &str| {
            let lengths: Lengths = text.parse().expect("well-formed");
            assert_eq!(lengths.to_string(), text);
            let mut draws = Draws::new(3, Purpose::Request, 0);
            (0..2000).map(|_| lengths.draw(&mut draws)).collect::<Vec<_>>()
        };
        assert!(draw("7").iter().all(|&n| n == 7));
        let uniform = draw("40..120");
        assert_eq!((uniform.iter().min(), uniform.iter().max()), (Some(&40), Some(&120)));
        let normal = draw("normal:80,20");
        let mean = normal.iter().sum::<usize>() as f64 / 2000.0;
        assert!((mean - 80.0).abs() < 2.0, "{mean}");
        assert!(draw("normal:2,50").iter().all(|&n| n >= 1));
    }
}
