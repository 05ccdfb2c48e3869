//! Output matrices cut into rectangles, each given to exactly one thread.
#![allow(
    unsafe_code,
    reason = "gives disjoint parts of one buffer to several threads"
)]

use std::marker::PhantomData;
use std::ops::Range;

use super::threads::Threads;

/// Matrices that one parallel region writes, and how they are cut.
#[derive(Debug, Default)]
pub(crate) struct TileGrid<'a> {
    parts: Vec<Part>,
    chunks: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

#[derive(Debug)]
struct Part {
    data: *mut f32,
    rows: usize,
    cols: usize,
    row_block: usize,
    col_block: usize,
    chunk0: usize,
}

// SAFETY: `data` stands for a `&mut [f32]`, which may be sent; parts of it are only reached
// through `Tile`s, which are disjoint.
unsafe impl Send for Part {}
// SAFETY: as above.
unsafe impl Sync for Part {}

impl<'a> TileGrid<'a> {
    /// Adds a row-major `[rows, cols]` matrix, cut every `row_block` rows and `col_block`
    /// columns.
    pub(crate) fn push(
        &mut self,
        data: &'a mut [f32],
        [rows, cols]: [usize; 2],
        [row_block, col_block]: [usize; 2],
    ) {
        assert_eq!(data.len(), rows * cols, "a matrix of {rows} x {cols}");
        assert!(row_block > 0 && col_block > 0, "blocks are not empty");
        let chunk0 = self.chunks;
        self.chunks += rows.div_ceil(row_block) * cols.div_ceil(col_block);
        let data = data.as_mut_ptr();
        self.parts.push(Part {
            data,
            rows,
            cols,
            row_block,
            col_block,
            chunk0,
        });
    }

    /// Calls `work` once per rectangle, on all threads or only on this one.
    pub(crate) fn run(self, threads: &Threads, parallel: bool, work: impl Fn(Tile<'_>) + Sync) {
        let call = |chunk| work(self.tile(chunk));
        if parallel {
            threads.run(self.chunks, &call);
        } else {
            (0..self.chunks).for_each(call);
        }
    }

    /// The same on this thread.
    pub(crate) fn run_here(self, mut work: impl FnMut(Tile<'_>)) {
        (0..self.chunks).for_each(|chunk| work(self.tile(chunk)));
    }

    fn tile(&self, chunk: usize) -> Tile<'_> {
        let index = self.parts.partition_point(|part| part.chunk0 <= chunk) - 1;
        let part = &self.parts[index];
        let across = part.cols.div_ceil(part.col_block);
        let (i, j) = (
            (chunk - part.chunk0) / across,
            (chunk - part.chunk0) % across,
        );
        let (row0, col0) = (i * part.row_block, j * part.col_block);
        Tile {
            part: index,
            rows: row0..part.rows.min(row0 + part.row_block),
            cols: col0..part.cols.min(col0 + part.col_block),
            data: part.data,
            stride: part.cols,
            borrow: PhantomData,
        }
    }
}

/// One rectangle of one matrix.
#[derive(Debug)]
pub(crate) struct Tile<'a> {
    /// Which matrix, in the order of [`TileGrid::push`].
    pub(crate) part: usize,
    /// Its rows.
    pub(crate) rows: Range<usize>,
    /// Its columns.
    pub(crate) cols: Range<usize>,
    data: *mut f32,
    stride: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

impl Tile<'_> {
    /// This rectangle's part of `row`, a row number of the whole matrix.
    #[inline]
    pub(crate) fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(self.rows.contains(&row), "row {row} of {:?}", self.rows);
        // SAFETY: row and columns lie inside the matrix (`tile` clips them), whose buffer is
        // mutably borrowed for the grid's lifetime. `Threads::run` makes each chunk number
        // once, rectangles of different chunks are disjoint, and `&mut self` keeps two rows of
        // this rectangle from being borrowed at once.
        unsafe {
            let begin = self.data.add(row * self.stride + self.cols.start);
            std::slice::from_raw_parts_mut(begin, self.cols.len())
        }
    }
}

/// Calls `work` once for each item, on all threads or only on this one.
pub(crate) fn for_each_mut<T: Send>(
    threads: &Threads,
    parallel: bool,
    items: &mut [T],
    work: impl Fn(usize, &mut T) + Sync,
) {
    if !parallel {
        items
            .iter_mut()
            .enumerate()
            .for_each(|(i, item)| work(i, item));
        return;
    }
    let base = Base(items.as_mut_ptr());
    threads.run(items.len(), &|i| {
        // SAFETY: `run` makes each number below `items.len()` once, so each item is borrowed
        // by one call only, within the mutable borrow of `items`; `T` may be sent.
        work(i, unsafe { &mut *base.at(i) });
    });
}

struct Base<T>(*mut T);

impl<T> Base<T> {
    /// # Safety
    /// `i` must be an index of the slice this base belongs to.
    unsafe fn at(&self, i: usize) -> *mut T {
        // SAFETY: `i` is in range, says the caller.
        unsafe { self.0.add(i) }
    }
}

// SAFETY: only used by `for_each_mut`, which gives every item to one thread.
unsafe impl<T: Send> Sync for Base<T> {}
