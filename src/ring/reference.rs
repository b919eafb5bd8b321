//! The ring engine against an independent one: the `virtio-queue` crate reads the same rings. It
//! knows split rings only, so packed ones are not compared.

use proptest::prelude::*;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use super::driver::{BASE, BUFFERS, Driver, INDIRECT, NEXT};
use super::feature;
use super::tests::take;

/// Entries of the rings, and descriptors of the table.
const SIZE: u16 = 256;
/// Guest address of the indirect tables.
const TABLES: u64 = BUFFERS + 0x20_0000;

/// A chain: the lengths of its buffers, and whether they stand in an indirect table.
type Chain = (Vec<u32>, bool);

fn chains() -> impl Strategy<Value = Vec<Chain>> {
    let chain = (prop::collection::vec(1..700u32, 1..8), any::<bool>());
    prop::collection::vec(chain, 1..24)
}

/// Puts the chains into the ring, the descriptors of direct ones in falling order.
fn offer(driver: &mut Driver, chains: &[Chain]) {
    let (mut free, mut buffer, mut table) = (SIZE, BUFFERS, TABLES);
    for (lens, indirect) in chains {
        let count = lens.len() as u16;
        let mut put = |driver: &Driver, i: u16, len: u32, next: u16| {
            let flags = if i + 1 == count { 0 } else { NEXT };
            let desc = driver.desc_bytes(buffer, len, flags, next);
            buffer += u64::from(len) + 3;
            let at = if *indirect {
                table + 16 * u64::from(i)
            } else {
                BASE + 16 * u64::from(free - 1 - i)
            };
            driver.write(at, &desc);
        };
        let head = free - 1;
        for (i, len) in (0..).zip(lens) {
            put(driver, i, *len, if *indirect { i + 1 } else { head.wrapping_sub(i + 1) });
        }
        if *indirect {
            driver.desc(head, table, 16 * u32::from(count), INDIRECT, 0);
            table += 16 * u64::from(count);
        }
        free -= if *indirect { 1 } else { count };
        driver.offer(head);
    }
}

/// What virtio-queue reads: head and bytes of each chain.
fn reference(driver: &Driver) -> Vec<(u16, Vec<u8>)> {
    let file = FileOffset::new(driver.file(), 0);
    let ranges = [(GuestAddress(BASE), driver.len() as usize, Some(file))];
    let memory = GuestMemoryMmap::<()>::from_ranges_with_files(ranges).unwrap();
    let [desc, avail, used] = driver.guest_addresses().map(GuestAddress);
    let mut queue = Queue::new(SIZE).unwrap();
    queue.try_set_desc_table_address(desc).unwrap();
    queue.try_set_avail_ring_address(avail).unwrap();
    queue.try_set_used_ring_address(used).unwrap();
    queue.set_ready(true);
    let chains = queue.iter(&memory).unwrap().map(|chain| {
        let head = chain.head_index();
        let bytes = chain.readable().flat_map(|desc| {
            let mut bytes = vec![0; desc.len() as usize];
            memory.read_slice(&mut bytes, desc.addr()).unwrap();
            bytes
        });
        (head, bytes.collect())
    });
    chains.collect()
}

proptest! {
    #[test]
    fn takes_what_virtio_queue_takes(chains in chains(), seed in any::<u8>()) {
        let mut driver = Driver::split(SIZE);
        let noise: Vec<u8> = (0..0x4_0000u32).map(|i| (i.wrapping_mul(31) >> 3) as u8 ^ seed).collect();
        driver.write(BUFFERS, &noise);
        let mut ring = driver.ring(feature::VERSION_1 | feature::INDIRECT_DESC);
        offer(&mut driver, &chains);
        let expected = reference(&driver);
        prop_assert_eq!(expected.len(), chains.len());
        let taken = take(&mut ring).unwrap();
        prop_assert_eq!(usize::from(taken.taken), chains.len());
        prop_assert_eq!(taken.bad_chains, 0);
        let frames = expected.iter().filter(|(_, bytes)| bytes.len() >= 12 + 14);
        let frames: Vec<_> = frames.map(|(_, bytes)| bytes[12..].to_vec()).collect();
        prop_assert_eq!(taken.frames, frames);
        for (position, (head, _)) in expected.iter().enumerate() {
            prop_assert_eq!(driver.used(position as u16), (u32::from(*head), 0));
        }
    }
}
