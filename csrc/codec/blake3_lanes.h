/*
 * BLAKE3 of LANES equally long inputs at once, one in each lane of a vector.
 * A template: blake3.c includes it once a vector width, with
 *   LANES        4, 8 or 16
 *   LANES_FN     name of the function that results
 *   LANES_TARGET attribute that allows the instructions, or nothing
 *   LANES_ROT    rotation to the right that suits them
 *
 * Lane i reads blocks*64 bytes at in + i*stride; its chaining value goes to
 * out + i*32.  out may be in: all is read before anything is written when
 * blocks is 1.
 */
#define CAT_(a, b) a##b
#define CAT(a, b) CAT_(a, b)
#define VEC CAT(LANES_FN, _vec)
#define TRANSPOSE CAT(LANES_FN, _transpose)

typedef uint32_t VEC __attribute__((vector_size(LANES * 4)));

/* Lane i of the two results of swapping the off-diagonal d x d blocks of rows a and b. */
#define UPPER(i, d) (((i) & ~(d)) + ((i) & (d)) * (LANES / (d)))
#define LOWER(i, d) (((i) | (d)) + ((i) & (d)) * (LANES / (d)))
#if LANES == 4
#define EACH(F, d) F(0, d), F(1, d), F(2, d), F(3, d)
#elif LANES == 8
#define EACH(F, d) F(0, d), F(1, d), F(2, d), F(3, d), F(4, d), F(5, d), F(6, d), F(7, d)
#else
#define EACH(F, d) F(0, d), F(1, d), F(2, d), F(3, d), F(4, d), F(5, d), F(6, d), F(7, d), \
	F(8, d), F(9, d), F(10, d), F(11, d), F(12, d), F(13, d), F(14, d), F(15, d)
#endif

#define SWAP(d) do {								\
	for (int i = 0; i < LANES; i++) {					\
		if (!(i & (d))) {						\
			VEC a = r[i], b = r[i + (d)];				\
										\
			r[i] = __builtin_shufflevector(a, b, EACH(UPPER, d));	\
			r[i + (d)] = __builtin_shufflevector(a, b, EACH(LOWER, d)); \
		}								\
	}									\
} while (0)

LANES_TARGET static inline __attribute__((always_inline)) void TRANSPOSE(VEC *r)
{
	SWAP(1);
	SWAP(2);
#if LANES >= 8
	SWAP(4);
#endif
#if LANES >= 16
	SWAP(8);
#endif
}

LANES_TARGET static void LANES_FN(const uint8_t *in, size_t stride, unsigned int blocks,
				  uint64_t counter, unsigned int counter_step, uint32_t flags,
				  uint32_t flags_first, uint32_t flags_last, uint8_t *out)
{
	VEC h[8], count_lo, count_hi;

	for (int i = 0; i < 8; i++)
		h[i] = (VEC){} + iv[i];
	for (int i = 0; i < LANES; i++) {
		count_lo[i] = (uint32_t)(counter + (uint64_t)i * counter_step);
		count_hi[i] = (uint32_t)((counter + (uint64_t)i * counter_step) >> 32);
	}
	for (unsigned int block = 0; block < blocks; block++) {
		const uint32_t f = flags | (block == 0 ? flags_first : 0) |
				   (block == blocks - 1 ? flags_last : 0);
		VEC v[16], m[16];

		/* Rows of the transposed squares: word w of every lane in m[w]. */
		for (int square = 0; square < 16 / LANES; square++) {
			VEC *r = m + square * LANES;

			for (int i = 0; i < LANES; i++)
				memcpy(&r[i], in + i * stride + block * 64 + square * LANES * 4,
				       sizeof(VEC));
			TRANSPOSE(r);
		}
		for (int i = 0; i < 8; i++)
			v[i] = h[i];
		for (int i = 0; i < 4; i++)
			v[8 + i] = (VEC){} + iv[i];
		v[12] = count_lo;
		v[13] = count_hi;
		v[14] = (VEC){} + 64;
		v[15] = (VEC){} + f;
#define LANES_ROUND(...) BLAKE3_ROUND(LANES_ROT, __VA_ARGS__)
		BLAKE3_ROUNDS(LANES_ROUND)
#undef LANES_ROUND
		for (int i = 0; i < 8; i++)
			h[i] = v[i] ^ v[i + 8];
	}
	for (int lane = 0; lane < LANES; lane++)
		for (int i = 0; i < 8; i++)
			store32(out + lane * 32 + i * 4, h[i][lane]);
}

#undef CAT_
#undef CAT
#undef VEC
#undef TRANSPOSE
#undef UPPER
#undef LOWER
#undef EACH
#undef SWAP
#undef LANES
#undef LANES_FN
#undef LANES_TARGET
#undef LANES_ROT
