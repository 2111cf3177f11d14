"""The Triton kernels; one operation a file.

Each file goes from the formula in its docstring by the kernels to the launcher that callers use,
and names mean the same in all of them. Launch arguments are base pointers (``NAME_ptr``), sizes,
and tuples of what belongs together (:mod:`.arguments`); constants are in capitals. Inside a kernel
``i_`` is a scalar index, ``o_`` a vector or matrix of offsets or coordinates, ``m_`` a mask, ``p_``
a pointer that has been computed, and ``b_`` a block in registers, whose shape stands beside its
load or product. Accumulators are called ``acc``, or by what they add up.
"""
