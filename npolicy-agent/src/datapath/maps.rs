//! Array maps as memory: what the agent writes, a program reads at its next load.
//!
//! A [`MappedArray`] is the `mmap` of a map made with `BPF_F_MMAPABLE`, or of a memory file of the same shape in tests. All
//! access is by single aligned stores and loads of 32 or 64 bits, so nobody can see half of one.
//!
//! Small maps that are no arrays are reached through [`Keyed`].

use std::io;
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Memory of `entries` values of type `T`, shared with the kernel.
///
/// Values are addressed by entry and word, since no value is ever written as a whole.
pub(super) struct MappedArray<T> {
    base: NonNull<u64>,
    bytes: usize,
    entries: u32,
    layout: PhantomData<fn(T) -> T>,
}

// SAFETY: the memory stays mapped as long as the value lives, and every access is atomic.
unsafe impl<T> Send for MappedArray<T> {}
// SAFETY: as for `Send`.
unsafe impl<T> Sync for MappedArray<T> {}

impl<T> MappedArray<T> {
    /// Words of 64 bits in a value.
    pub(super) const WORDS: usize = {
        assert!(size_of::<T>().is_multiple_of(8), "the kernel keeps array values apart by multiples of 8 bytes");
        size_of::<T>() / 8
    };

    /// Maps the values of an array map with `entries` entries.
    ///
    /// # Errors
    ///
    /// The kernel's, if the map was not made to be mapped.
    pub(super) fn of_map(map: impl AsFd, entries: u32) -> io::Result<Self> {
        let bytes = Self::bytes(entries);
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: no address is asked for, so no existing mapping is touched.
        let base = unsafe { mmap(std::ptr::null_mut(), bytes, protection, MapFlags::SHARED, map, 0) }?;
        Ok(Self::new(base, bytes, entries))
    }

    fn bytes(entries: u32) -> usize {
        (entries as usize * size_of::<T>()).next_multiple_of(rustix::param::page_size())
    }

    fn new(base: *mut std::ffi::c_void, bytes: usize, entries: u32) -> Self {
        let base = NonNull::new(base.cast()).expect("a mapping is never at address zero");
        Self { base, bytes, entries, layout: PhantomData }
    }

    /// Entries in the map.
    pub(super) fn entries(&self) -> u32 {
        self.entries
    }

    fn word(&self, entry: u32, word: usize) -> &AtomicU64 {
        assert!(entry < self.entries && word < Self::WORDS, "entry {entry} word {word} is outside the table");
        // SAFETY: inside the mapping (asserted; its length is `entries * WORDS` words or more).
        let pointer = unsafe { self.base.as_ptr().add(entry as usize * Self::WORDS + word) };
        // SAFETY: aligned (the mapping is page-aligned), mapped while `self` lives, and accessed by atomics alone.
        unsafe { AtomicU64::from_ptr(pointer) }
    }

    fn half(&self, entry: u32, half: usize) -> &AtomicU32 {
        let word = self.word(entry, half / 2).as_ptr().cast::<u32>();
        // SAFETY: a word has two halves, so this one is inside the mapping too.
        let pointer = unsafe { word.add(half % 2) };
        // SAFETY: as in `word`.
        unsafe { AtomicU32::from_ptr(pointer) }
    }

    /// Reads 64 bits of a value.
    pub(super) fn load64(&self, entry: u32, word: usize) -> u64 {
        self.word(entry, word).load(Ordering::Relaxed)
    }

    /// Reads 32 bits of a value.
    pub(super) fn load32(&self, entry: u32, half: usize) -> u32 {
        self.half(entry, half).load(Ordering::Relaxed)
    }

    /// Writes 64 bits that no program can reach yet, or whose order does not matter.
    pub(super) fn store64(&self, entry: u32, word: usize, value: u64) {
        self.word(entry, word).store(value, Ordering::Relaxed);
        after_store();
    }

    /// Writes 32 bits that no program can reach yet, or whose order does not matter.
    pub(super) fn store32(&self, entry: u32, half: usize, value: u32) {
        self.half(entry, half).store(value, Ordering::Relaxed);
        after_store();
    }

    /// Writes 64 bits after everything written before.
    pub(super) fn flip64(&self, entry: u32, word: usize, value: u64) {
        fence(Ordering::Release);
        self.store64(entry, word, value);
    }

    /// Writes 32 bits after everything written before.
    pub(super) fn flip32(&self, entry: u32, half: usize, value: u32) {
        fence(Ordering::Release);
        self.store32(entry, half, value);
    }
}

impl<T> Drop for MappedArray<T> {
    fn drop(&mut self) {
        // SAFETY: made by `mmap` with this length; nothing borrows it any more.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) };
        unmapped.expect("a mapping of ours can be unmapped");
    }
}

impl<T> std::fmt::Debug for MappedArray<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MappedArray<{}>({} entries)", std::any::type_name::<T>(), self.entries)
    }
}

#[cfg(not(test))]
fn after_store() {}

/// Tests look at the tables after every single store.
#[cfg(test)]
fn after_store() {
    watch::AFTER_STORE.with_borrow_mut(|watcher| {
        if let Some(watcher) = watcher {
            watcher();
        }
    });
}

#[cfg(test)]
pub(super) mod watch {
    use std::cell::RefCell;

    thread_local! {
        pub(in crate::datapath) static AFTER_STORE: RefCell<Option<Box<dyn FnMut()>>> = const { RefCell::new(None) };
    }
}

/// A map that is no array: a few system calls, or a table of this process for tests.
pub(super) trait Keyed<K, V>: Send {
    /// Adds or replaces an entry; a reader sees the old value or the new one.
    ///
    /// # Errors
    ///
    /// The kernel's, E2BIG or ENOSPC where the map is full.
    fn set(&mut self, key: K, value: V) -> io::Result<()>;

    /// Removes an entry that exists.
    ///
    /// # Errors
    ///
    /// The kernel's.
    fn remove(&mut self, key: K) -> io::Result<()>;

    /// Reads everything.
    ///
    /// # Errors
    ///
    /// The kernel's.
    fn entries(&self) -> io::Result<Vec<(K, V)>>;
}

#[cfg(test)]
pub(super) mod double {
    use std::hash::Hash;
    use std::io;
    use std::os::fd::OwnedFd;
    use std::sync::{Arc, Mutex};

    use rustc_hash::FxHashMap;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::{Keyed, MappedArray};

    /// A file of memory in place of an array map: it can be mapped as often as a test likes.
    #[derive(Debug)]
    pub(in crate::datapath) struct File(OwnedFd, u32);

    impl File {
        /// A file of `entries` zeroed values.
        pub(in crate::datapath) fn new<T>(entries: u32) -> Self {
            let file = memfd_create("map", MemfdFlags::CLOEXEC).unwrap();
            ftruncate(&file, MappedArray::<T>::bytes(entries) as u64).unwrap();
            Self(file, entries)
        }

        pub(in crate::datapath) fn map<T>(&self) -> MappedArray<T> {
            MappedArray::of_map(&self.0, self.1).unwrap()
        }
    }

    /// An array nobody else looks into.
    pub(in crate::datapath) fn array<T>(entries: u32) -> MappedArray<T> {
        File::new::<T>(entries).map()
    }

    /// A map in this process that a test can look into while it is written.
    #[derive(Clone, Debug)]
    pub(in crate::datapath) struct Double<K, V>(pub(in crate::datapath) Arc<Mutex<FxHashMap<K, V>>>);

    impl<K, V> Default for Double<K, V> {
        fn default() -> Self {
            Self(Arc::default())
        }
    }

    impl<K: Hash + Eq + Copy + Send, V: Copy + Send> Keyed<K, V> for Double<K, V> {
        fn set(&mut self, key: K, value: V) -> io::Result<()> {
            self.0.lock().expect("no test panics while it holds the lock").insert(key, value);
            super::after_store();
            Ok(())
        }

        fn remove(&mut self, key: K) -> io::Result<()> {
            let removed = self.0.lock().expect("no test panics while it holds the lock").remove(&key);
            super::after_store();
            removed.map(drop).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
        }

        fn entries(&self) -> io::Result<Vec<(K, V)>> {
            Ok(self.0.lock().expect("no test panics while it holds the lock").iter().map(|(&k, &v)| (k, v)).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_and_words_are_the_same_memory() {
        let array = double::array::<[u64; 2]>(3);
        array.store32(1, 3, 0x8765_4321);
        array.flip32(1, 2, 0x1234_5678);
        let bytes: Vec<u8> = [0x1234_5678_u32, 0x8765_4321].into_iter().flat_map(u32::to_ne_bytes).collect();
        assert_eq!(array.load64(1, 1).to_ne_bytes(), bytes[..]);
        assert_eq!((array.load64(1, 0), array.load64(0, 1), array.load64(2, 0)), (0, 0, 0));
    }

    #[test]
    #[should_panic(expected = "outside the table")]
    fn refuses_an_entry_outside_the_table() {
        double::array::<[u64; 2]>(3).load64(3, 0);
    }
}
