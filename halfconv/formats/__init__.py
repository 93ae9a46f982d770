"""Number formats: bits, ranges, rounding and arithmetic of binary32, binary16, bfloat16 and two of float8. Needs numpy alone.

    >>> import numpy as np
    >>> from halfconv.formats import BFLOAT16, BINARY16, FLOAT8_E4M3FN, add, decode, encode, multiply, neighbours, round_to, ulp
    >>> hex(encode(3.14159, BINARY16)), float(decode(0x4248, BINARY16))
    ('0x4248', 3.140625)
    >>> [float(beside) for beside in neighbours(3.140625, BINARY16)], float(ulp(3.14159, BINARY16))
    ([3.138671875, 3.142578125], 0.001953125)
    >>> BINARY16.max, BINARY16.min_normal, BINARY16.min_subnormal, BINARY16.epsilon
    (65504.0, 6.103515625e-05, 5.960464477539063e-08, 0.0009765625)

What goes wrong elsewhere
-------------------------
This conversion is often published: move the exponent from one bias to the other, cut the fraction.

    >>> def published(x, bias=15):
    ...     bits = int(np.float32(x).view(np.uint32))
    ...     return bits >> 16 & 0x8000 | ((bits >> 23 & 0xFF) - 127 + bias) << 10 | bits >> 13 & 0x3FF

*Truncation.* It cuts digits off in place of rounding: the error reaches one ulp, not half of one, and is always toward zero, so
that sums of many drift down. 0.9999 lies 0.0001 from 1, and is cut to 0.9995:

    >>> float(decode(published(0.9999), BINARY16)), float(round_to(0.9999, BINARY16))
    (0.99951171875, 1.0)

Adding half an ulp before the cut is not enough, as ties go to even: 2049 lies midway between 2048 and 2050, 2051 between 2050 and
2052.

    >>> round_to([2049.0, 2051.0], BINARY16).tolist()
    [2048.0, 2052.0]

*Bias.* Binary16's is 15. With 16, all numbers are doubled; with binary32's own 127 left in place, the result has more than 16 bits.

    >>> float(decode(published(1.0, bias=16), BINARY16)), published(1.0, bias=127) > 0xFFFF
    (2.0, True)

*Zero* has an exponent field of 0, which is no exponent to shift: the result is negative, and no pattern. −0 has a sign to keep.

    >>> published(0.0), encode([0.0, -0.0], BINARY16).tolist() == [0x0000, 0x8000]
    (-114688, True)

*Subnormal numbers*, below 2^-14, have a field of 0 and no leading 1. 1e-5 is one of them; to flush it to zero loses all of it, and
the formula gives a negative pattern again.

    >>> published(1e-5) < 0, float(round_to(1e-5, BINARY16))
    (True, 1.0013580322265625e-05)

*Overflow.* The exponent runs over into the sign: 131072 becomes −0. By IEEE 754 it is infinity, and so is everything from 65,520
on, half an ulp beyond the largest number.

    >>> hex(published(131072.0)), round_to([131072.0, 65520.0, 65519.0], BINARY16).tolist()
    ('0x8000', [inf, inf, 65504.0])

*Infinity and NaN* have the field 255, which becomes 143, and runs over as well.

    >>> published(np.inf) > 0xFFFF, encode([np.inf, np.nan], BINARY16).tolist() == [0x7C00, 0x7E00]
    (True, True)

*Two roundings.* From binary64 by way of binary32 is not from binary64: what lies a little above a tie becomes one on the way.

    >>> x = 1 + 2**-11 + 2**-40
    >>> float(round_to(np.float32(x), BINARY16)), float(round_to(x, BINARY16))
    (1.0, 1.0009765625)

*Arithmetic by fields.* "Add the significands, add the exponents" multiplies the scales: 1.5·2^1 + 1.0·2^0 is not 2.5·2^1. To add,
the operand with the smaller exponent is shifted until the exponents agree; only to multiply are exponents added, and then the
significands are multiplied.

    >>> (1.5 + 1.0) * 2 ** (1 + 0), float(add(1.5 * 2**1, 1.0 * 2**0, BINARY16)), float(multiply(1.5 * 2**1, 1.0 * 2**0, BINARY16))
    (5.0, 4.0, 3.0)

*"Correction" by a signed epsilon*, x + sign(x)·ε. A number that was exact is made wrong, a large one does not change, as ε is less
than half an ulp of it, and a small one is drowned. What was rounded away is no longer in x: nothing added afterwards brings it
back. To keep it on average, round stochastically.

    >>> corrected = lambda x: float(add(x, np.copysign(BINARY16.epsilon, x), BINARY16))
    >>> corrected(1.0), corrected(4.0), corrected(1e-5)
    (1.0009765625, 4.0, 0.000986...)
    >>> total = plain = 0.0
    >>> rng = np.random.default_rng(0)
    >>> for _ in range(4096):
    ...     plain = float(add(plain, 0.25, BFLOAT16))
    ...     total = float(add(total, 0.25, BFLOAT16, "stochastic", rng))
    >>> plain, abs(total / 1024 - 1) < 0.2
    (64.0, True)

*Float8 without infinities.* In E4M3FN what overflows is NaN; ONNX's Cast saturates instead unless told otherwise.

    >>> round_to([448.0, 464.0, 464.1, -np.inf], FLOAT8_E4M3FN).tolist()
    [448.0, 448.0, nan, nan]
"""

from halfconv.formats.arithmetic import add, multiply
from halfconv.formats.codec import ROUNDINGS, Rounding, decode, encode, neighbours, round_to, ulp
from halfconv.formats.describe import FormatsReport, Number, Stored, describe
from halfconv.formats.fields import Fields, fields
from halfconv.formats.layout import (
    BFLOAT16,
    BINARY16,
    BINARY32,
    FLOAT8_E4M3FN,
    FLOAT8_E5M2,
    FORMATS,
    Format,
    format_named,
)
from halfconv.formats.trace import Rounded, Step, Trace, explain_add, explain_multiply

__all__ = [
    "BFLOAT16",
    "BINARY16",
    "BINARY32",
    "FLOAT8_E4M3FN",
    "FLOAT8_E5M2",
    "FORMATS",
    "ROUNDINGS",
    "Fields",
    "Format",
    "FormatsReport",
    "Number",
    "Rounded",
    "Rounding",
    "Step",
    "Stored",
    "Trace",
    "add",
    "decode",
    "describe",
    "encode",
    "explain_add",
    "explain_multiply",
    "fields",
    "format_named",
    "multiply",
    "neighbours",
    "round_to",
    "ulp",
]
