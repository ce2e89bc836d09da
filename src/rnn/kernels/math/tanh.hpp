// tanh of sixteen floats at once: a polynomial for each block of the real line, whose coefficients are looked up, by
// one instruction, in tables of sixteen.  No division; largest error 1.1 ULP.
//
//   |x| in block k:     tanh |x| = tanh c + t (p1 + p2 t + ... + p6 t^5),   t = |x| - c
//
// Blocks end at powers of two times 1.25 and 1.75; the first goes from 0 to 0.21875, the last to 9.03, from where on
// tanh rounds to 1.  c lies near the middle of its block, where tanh c is a float to within 2^-34 (in the first: c = 0,
// p1 = 1); p has the least maximum of the relative error, 2^-25.3 or less.
#pragma once

#include "math/vec.hpp"

#if FASTRNN_VECTOR_BYTES == 64
namespace fastrnn {
namespace FASTRNN_ISA {

struct TanhPieces {
  static constexpr float kOne = 9.03f;
  // The bits of a float, plus the one, shifted by the other: its block
  static constexpr int kHalfBit = 1 << 21, kShift = 22;
  static constexpr int kFirst = 249;  // the block below 0.21875, to which all smaller ones are raised
  // [c, tanh c, p1, ..., p6][block mod 16]
  alignas(64) static constexpr float table[8][16] = {
        {2.1244576f, 3.00066781f, 4.25057745f, 6.00039864f, 8.01213932f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.265650868f,
         0.375086069f, 0.531340182f, 0.750143766f, 1.06247878f, 1.50033629f},
        {0.971842647f, 0.995061338f, 0.999593616f, 0.999987721f, 0.999999762f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f,
         0.25957334f, 0.358432412f, 0.486404866f, 0.635234714f, 0.786610723f, 0.905209005f},
        {0.0555217788f, 0.00985307712f, 0.000812796003f, 2.45914398e-05f, 4.39290005e-07f, 0.0f, 0.0f, 0.0f, 0.0f,
         1.0f, 0.932621658f, 0.871526182f, 0.76341033f, 0.596476853f, 0.381243557f, 0.18059656f},
        {-0.0539582781f, -0.00980434101f, -0.000812418817f, -2.45833671e-05f, -1.13612757e-07f, 0.0f, 0.0f, 0.0f,
         0.0f, -8.32579474e-07f, -0.242083728f, -0.312383235f, -0.371326506f, -0.378902823f, -0.299890339f,
         -0.1634776f},
        {0.0339374803f, 0.00646684784f, 0.000538233377f, 1.60817799e-05f, 2.92440347e-07f, 0.0f, 0.0f, 0.0f, 0.0f,
         -0.333288431f, -0.248035386f, -0.178540617f, -0.0738570541f, 0.0418621078f, 0.108816035f, 0.0877958387f},
        {-0.0149986148f, -0.00317021809f, -0.000268856733f, -8.0564796e-06f, -9.87183284e-07f, 0.0f, 0.0f, 0.0f, 0.0f,
         -0.00088843744f, 0.145075411f, 0.168122485f, 0.159700915f, 0.0997133031f, 0.0143754566f, -0.0249774773f},
        {0.00441132253f, 0.00125554588f, 0.000117854914f, 3.85174008e-06f, 6.35745963e-08f, 0.0f, 0.0f, 0.0f, 0.0f,
         0.141318753f, 0.065713726f, 0.0187053885f, -0.0356387943f, -0.0634522811f, -0.0391245224f, -0.00307426462f},
        {-0.000481711439f, -0.000379426318f, -3.88190456e-05f, -1.27426665e-06f, 5.22231176e-07f, 0.0f, 0.0f, 0.0f,
         0.0f, -0.0334466547f, -0.0700198039f, -0.0695525855f, -0.0440462753f, -0.0014993581f, 0.0189467892f,
         0.00725177024f}};
};

FASTRNN_INLINE Vec<float> tanh_by_pieces(Vec<float> x) {
  using C = TanhPieces;
  const Bits<float> sign_bit = (Bits<float>)splat(-0.0f);
  Vec<float> magnitude = (Vec<float>)((Bits<float>)x & ~sign_bit);
  magnitude = select<float>(magnitude > C::kOne, splat(C::kOne), magnitude);
  Bits<float> block = ((Bits<float>)magnitude + C::kHalfBit) >> C::kShift;
  block = block > C::kFirst ? block : Bits<float>{} + C::kFirst;
  const Vec<float> t = magnitude - lookup(C::table[0], block);
  Vec<float> y = lookup(C::table[7], block);
  FASTRNN_UNROLL
  for (int i = 6; i >= 1; --i) y = y * t + lookup(C::table[i], block);
  return (Vec<float>)((Bits<float>)y | ((Bits<float>)x & sign_bit));
}

}  // namespace FASTRNN_ISA
}  // namespace fastrnn
#endif
