use super::*;
use proptest::prelude::*;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;

fn decode(bytes: &[u8]) -> Vec<Result<Event, EventError>> {
    let mut decoder = Decoder::default();
    bytes.iter().filter_map(|byte| decoder.push(*byte)).collect()
}

fn events(bytes: &[u8]) -> Vec<Event> {
    decode(bytes).into_iter().flatten().collect()
}

fn printed(source: &str, event: &str) -> String {
    let event = serde_json::json!({
        "timestamp": {"secs": 1, "nanos": 515_010_000},
        "source": source,
        "event": event,
        "properties": {"id": "_fs0 {\"}\\"},
    });
    format!("{}\n\n", serde_json::to_string_pretty(&event).unwrap())
}

/// What v53 wrote for a guest that booted and powered off, shortened.
const BOOT_AND_POWER_OFF: &str = r#"{
  "timestamp": {
    "secs": 0,
    "nanos": 4466873
  },
  "source": "vmm",
  "event": "starting",
  "properties": null
}

{
  "timestamp": {
    "secs": 2,
    "nanos": 9446180
  },
  "source": "vm",
  "event": "booted",
  "properties": null
}

{
  "timestamp": {
    "secs": 17,
    "nanos": 402066021
  },
  "source": "virtio-device",
  "event": "activated",
  "properties": {
    "id": "_fs1"
  }
}

{
  "timestamp": {
    "secs": 20,
    "nanos": 7704101
  },
  "source": "vm",
  "event": "shutdown",
  "properties": null
}

"#;

#[test]
fn a_life_as_it_is_written() {
    let other = |source: &str, event: &str| Event::Other { source: source.into(), event: event.into() };
    let expected =
        [other("vmm", "starting"), Event::Booted, other("virtio-device", "activated"), Event::Shutdown];
    assert_eq!(events(BOOT_AND_POWER_OFF.as_bytes()), expected);
}

#[test]
fn an_event_may_be_printed_on_one_line_without_a_gap() {
    let one = r#"{"source":"vm","event":"booted"}"#;
    assert_eq!(events(one.repeat(3).as_bytes()), [Event::Booted, Event::Booted, Event::Booted]);
}

#[test]
fn an_event_that_was_cut_does_not_take_the_next_one_with_it() {
    let whole = printed("vm", "rebooting");
    for length in 1..whole.trim_end().len() {
        let stream = format!("{}\n\n{whole}", &whole[..length]);
        assert_eq!(events(stream.as_bytes()).last(), Some(&Event::Rebooting), "cut after {length}");
    }
    let cut = format!("{}\n\n{whole}", r#"{ "source": "vm", "eve"#);
    assert!(matches!(decode(cut.as_bytes())[..], [Err(EventError::Cut), Ok(Event::Rebooting)]));
}

#[test]
fn garbage_is_reported_once() {
    let stream = format!("panic ] }} \u{1b}[0m {}", printed("vm", "booted"));
    assert!(matches!(decode(stream.as_bytes())[..], [Err(EventError::Garbage), Ok(Event::Booted)]));
    assert!(matches!(decode(b"{\"source\": 1}")[..], [Err(EventError::Unreadable(_))]));
    assert!(matches!(decode(b"{\"source\": nonsense}")[..], [Err(EventError::Unreadable(_))]));
}

#[test]
fn an_endless_event_is_dropped() {
    let mut decoder = Decoder::default();
    let endless = b"{\"source\": \"".iter().chain(std::iter::repeat(&b'a')).take(10 * MAX_EVENT);
    let found: Vec<_> = endless.filter_map(|byte| decoder.push(*byte)).collect();
    assert!(matches!(found[..], [Err(EventError::TooLarge)]));
    assert!(decoder.object.capacity() <= 2 * MAX_EVENT);
    let found: Vec<_> = printed("vm", "booted").bytes().filter_map(|byte| decoder.push(byte)).collect();
    assert!(matches!(found[..], [Ok(Event::Booted)]));
}

#[test]
fn deep_nesting_is_no_recursion() {
    let deep = "{\"a\":".repeat(2000) + &"}".repeat(2000);
    assert!(matches!(decode(deep.as_bytes())[..], [Err(EventError::Unreadable(_))]));
}

#[test]
fn the_first_end_counts() {
    let live = |events: &[Event]| events.iter().fold(Life::default(), Life::after);
    assert_eq!(live(&[Event::Booted]), Life::Running);
    assert_eq!(live(&[Event::Booted, Event::Shutdown]), Life::Off);
    assert_eq!(live(&[Event::Booted, Event::Rebooting, Event::Shutdown, Event::Booted]), Life::Reset);
    assert_eq!(live(&[Event::Booted, Event::Panicked, Event::Rebooting]), Life::Panicked);
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn any_json_text_between_is_found_again(
        source in any::<String>(),
        event in any::<String>(),
        count in 1_usize..5,
    ) {
        let stream = printed(&source, &event).repeat(count) + &printed("vm", "booted");
        let found = events(stream.as_bytes());
        prop_assert_eq!(found.len(), count + 1);
        prop_assert_eq!(&found[count], &Event::Booted);
        if !matches!(source.as_str(), "vm" | "guest") {
            prop_assert_eq!(&found[0], &Event::Other { source, event });
        }
    }

    #[test]
    fn chunks_may_end_anywhere(cuts in prop::collection::vec(0..BOOT_AND_POWER_OFF.len(), 0..12)) {
        let mut cuts = cuts;
        cuts.extend([0, BOOT_AND_POWER_OFF.len()]);
        cuts.sort_unstable();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let last = runtime.block_on(async {
            let (reader, mut writer) = tokio::io::duplex(64);
            let mut life = follow(reader, Life::default());
            for pair in cuts.windows(2) {
                writer.write_all(&BOOT_AND_POWER_OFF.as_bytes()[pair[0]..pair[1]]).await.unwrap();
                tokio::task::yield_now().await;
            }
            let off = tokio::time::timeout(Duration::from_secs(5), life.wait_for(|life| life.is_over())).await;
            let off = *off.unwrap().unwrap();
            drop(writer);
            // The end of the stream shows.
            tokio::time::timeout(Duration::from_secs(5), async { while life.changed().await.is_ok() {} })
                .await
                .unwrap();
            off
        });
        prop_assert_eq!(last, Life::Off);
    }
}
