//! Timestamps as text: `2025-01-31T12:00:00.000000000Z`, always UTC and with nine digits, so that equal times
//! have equal text.

use crate::inode::Timestamp;

const DAY: i64 = 86_400;

/// Formats a time as RFC 3339 in UTC with nanoseconds. Years outside 0..=9999 have a sign, as in ISO 8601.
pub fn format(time: Timestamp) -> String {
    let (days, second) = (time.secs.div_euclid(DAY), time.secs.rem_euclid(DAY));
    let (year, month, day) = civil(days);
    let year = if (0..=9999).contains(&year) { format!("{year:04}") } else { format!("{year:+07}") };
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z", time.nanos)
}

/// Parses the output of [`format()`]; `None` for anything else.
pub fn parse(text: &str) -> Option<Timestamp> {
    let (date, clock) = text.split_once('T')?;
    let (rest, day) = date.rsplit_once('-')?;
    let (year, month) = rest.rsplit_once('-')?;
    let (clock, nanos) = clock.strip_suffix('Z')?.split_once('.')?;
    let mut clock = clock.split(':').map(|part| part.parse::<i64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let days = days(year.parse().ok()?, month.parse().ok()?, day.parse().ok()?);
    let secs = days * DAY + hour * 3600 + minute * 60 + second;
    let time = Timestamp { secs, nanos: nanos.parse().ok()? };
    // Each time has exactly one text: anything that does not round-trip is refused.
    (format(time) == text).then_some(time)
}

/// Converts days since 1970-01-01 to (year, month, day), after Howard Hinnant's "chrono-compatible low-level
/// date algorithms".
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted_month + 2) / 5 + 1)
}

/// The inverse of [`civil`], for years of any sane size.
fn days(year: i32, month: u8, day: u8) -> i64 {
    let (month, day) = (i64::from(month), i64::from(day));
    let year = i64::from(year) - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// `#[serde(with = "crate::rfc3339::text")]` for a [`Timestamp`] field.
pub(crate) mod text {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use crate::inode::Timestamp;

    pub fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::format(*time))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::parse(&text)
            .ok_or_else(|| de::Error::custom(format_args!("{text:?} is not an RFC 3339 time in UTC")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times() {
        let known = [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, 5, "2000-02-29T00:00:00.000000005Z"),
            (1_763_709_360, 999_999_999, "2025-11-21T07:16:00.999999999Z"),
            (-1, 0, "1969-12-31T23:59:59.000000000Z"),
        ];
        for (secs, nanos, text) in known {
            let time = Timestamp { secs, nanos };
            assert_eq!(format(time), text);
            assert_eq!(parse(text), Some(time));
        }
    }

    #[test]
    fn every_day_of_four_centuries_comes_back() {
        for day in (-146_097..146_097).step_by(7) {
            let time = Timestamp { secs: day * DAY + 3_601, nanos: 1 };
            assert_eq!(parse(&format(time)), Some(time));
        }
    }

    #[test]
    fn what_is_not_canonical_is_refused() {
        for bad in [
            "",
            "2025-02-30T00:00:00.000000000Z",
            "2025-01-01T00:00:00Z",
            "2025-01-01T00:00:00.000000000",
            "2025-01-01T24:00:00.000000000Z",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
