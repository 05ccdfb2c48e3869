//! Buffers that passes use again.

/// Makes a buffer exactly `len` long; what it holds has no meaning. One that is too small is freed
/// before it is allocated anew, and without spare room, so that its size can be told beforehand.
pub(crate) fn sized<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.capacity() < len {
        *buffer = Vec::new();
        *buffer = vec![T::default(); len];
    }
    buffer.resize(len, T::default());
    buffer
}

/// Makes a buffer a copy of `from`.
pub(crate) fn copy<T: Copy + Default>(to: &mut Vec<T>, from: &[T]) {
    sized(to, from.len()).copy_from_slice(from);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_grows_to_what_is_asked_and_no_further() {
        let mut buffer = vec![1.0_f32; 10];
        sized(&mut buffer, 11);
        assert_eq!((buffer.len(), buffer.capacity()), (11, 11));
        sized(&mut buffer, 4);
        copy(&mut buffer, &[2.0; 7]);
        assert_eq!((buffer.as_slice(), buffer.capacity()), (&[2.0; 7][..], 11));
    }
}
