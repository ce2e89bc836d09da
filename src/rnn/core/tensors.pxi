# Arrays on the memory of torch's tensors, found without one of torch's operators. Included by _core.pyx.

cdef extern from *:
    """
    // Of dlpack.h, version 1.3: how a library hands out pointers into its tensors
    #include <stdint.h>
    struct DLDevice { int32_t device_type, device_id; };
    struct DLDataType { uint8_t code, bits; uint16_t lanes; };
    struct DLTensor {
      void* data; DLDevice device; int32_t ndim; DLDataType dtype; int64_t *shape, *strides; uint64_t byte_offset;
    };
    struct DLPackExchangeAPI {
      uint32_t major, minor;
      DLPackExchangeAPI* previous;
      void *allocate, *managed_from_object, *object_from_managed;
      int (*from_object)(void*, DLTensor*);  // 0, or an exception is set
      void* current_stream;
    };
    static const int32_t DL_CPU = 1;
    static const uint8_t DL_FLOAT = 2;
    """
    struct DLDevice:
        int32_t device_type
    struct DLDataType:
        uint8_t code, bits
        uint16_t lanes
    struct DLTensor:
        void* data
        DLDevice device
        int32_t ndim
        DLDataType dtype
        int64_t* shape
        int64_t* strides
        uint64_t byte_offset
    struct DLPackExchangeAPI:
        uint32_t major
        DLPackExchangeAPI* previous
        int (*from_object)(void*, DLTensor*)
    const int32_t DL_CPU
    const uint8_t DL_FLOAT


cdef class TensorReader:
    """Arrays on the memory of torch's tensors: `arrays`; whether these tensors still have it, `lie_still`, and whether
    others do, `lie_at`.

    exchange: the capsule that torch has for C; ValueError if it is of a version that is not known here.
    classes: those of tensors that are read, not those derived from them.
    """

    cdef const DLPackExchangeAPI* api
    cdef tuple classes

    def __init__(self, exchange, tuple classes):
        self.classes = classes
        self.api = <const DLPackExchangeAPI*>PyCapsule_GetPointer(exchange, "dlpack_exchange_api")
        while self.api != NULL and self.api.major != 1:
            self.api = self.api.previous
        if self.api == NULL:
            raise ValueError("expected DLPack's exchange API of version 1, got others")

    cdef int typenum(self, tensor, DLTensor* found) noexcept:
        """The NumPy type of the numbers of a tensor on the CPU, which is described in found; -1 if it is none here."""
        for each in self.classes:
            if type(tensor) is each:
                break
        else:
            return -1
        if self.api.from_object(<void*>tensor, found) != 0:
            PyErr_Clear()
            return -1
        if found.device.device_type != DL_CPU or found.dtype.code != DL_FLOAT or found.dtype.lanes != 1:
            return -1
        if found.ndim > 3 or (found.strides == NULL and found.ndim > 0):
            return -1
        return cnp.NPY_FLOAT32 if found.dtype.bits == 32 else cnp.NPY_FLOAT64 if found.dtype.bits == 64 else -1

    def array(self, tensor):
        """The same memory, of float32 or float64, in at most three dimensions, as an array; None if it is another.

        The array refers to the tensor, which must not be given other memory as long as the array is used.
        """
        cdef DLTensor found
        cdef cnp.npy_intp strides[3]
        cdef int axis, typenum = self.typenum(tensor, &found)
        cdef bint empty = False
        if typenum < 0 or tensor.is_neg():
            return None
        for axis in range(found.ndim):
            empty |= found.shape[axis] == 0
        if found.data == NULL and not empty:
            return None  # its storage was given back
        for axis in range(found.ndim):
            strides[axis] = found.strides[axis] * (found.dtype.bits // 8)
        array = cnp.PyArray_New(
            cnp.ndarray, found.ndim, <cnp.npy_intp*>found.shape, typenum, strides,
            <char*>found.data + found.byte_offset, 0, cnp.NPY_ARRAY_WRITEABLE, None,
        )  # fmt: skip
        cnp.set_array_base(array, tensor)
        return array

    def arrays(self, tensors):
        """`array` of each of several tensors, in a list; None if one has none."""
        found = []
        for tensor in tensors:
            array = self.array(tensor)
            if array is None:
                return None
            found.append(array)
        return found

    def lie_still(self, list arrays):
        """Whether the tensors that arrays refer to still have the memory that the arrays have."""
        cdef DLTensor found
        for array in arrays:
            tensor = cnp.get_array_base(array)
            if tensor is None:
                continue
            if self.typenum(tensor, &found) < 0 or <char*>found.data + found.byte_offset != cnp.PyArray_BYTES(array):
                return False
        return True

    def lie_at(self, list tensors, list arrays):
        """Whether each tensor has just the memory of its C-contiguous array, in the same shape."""
        cdef DLTensor found
        cdef Py_ssize_t i
        cdef int axis
        cdef int64_t step
        for i in range(len(tensors)):
            array = arrays[i]
            if self.typenum(tensors[i], &found) != cnp.PyArray_TYPE(array) or found.ndim != cnp.PyArray_NDIM(array):
                return False
            if <char*>found.data + found.byte_offset != <char*>cnp.PyArray_DATA(array):
                return False
            step = 1
            for axis in reversed(range(found.ndim)):
                if found.shape[axis] != cnp.PyArray_DIM(array, axis):
                    return False
                if found.strides[axis] != step and found.shape[axis] > 1:
                    return False
                step *= found.shape[axis]
        return True
