/* The seven rounds of BLAKE3, shared by the scalar and the vector compression. */
#ifndef NYDUS_BLAKE3_ROUNDS_H
#define NYDUS_BLAKE3_ROUNDS_H

/* R(order of the 16 message words) once a round: each permutes the one before. */
#define BLAKE3_ROUNDS(R) \
	R(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15) \
	R(2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8) \
	R(3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1) \
	R(10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6) \
	R(12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4) \
	R(9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7) \
	R(11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13)

/*
 * One round over state v and message m, columns then diagonals.  ROT(x, n) is
 * rotation to the right of whatever v is made of: words or vectors of words.
 */
#define BLAKE3_G(ROT, a, b, c, d, x, y) do {		\
	v[a] += v[b] + m[x];				\
	v[d] = ROT(v[d] ^ v[a], 16);			\
	v[c] += v[d];					\
	v[b] = ROT(v[b] ^ v[c], 12);			\
	v[a] += v[b] + m[y];				\
	v[d] = ROT(v[d] ^ v[a], 8);			\
	v[c] += v[d];					\
	v[b] = ROT(v[b] ^ v[c], 7);			\
} while (0);

#define BLAKE3_ROUND(ROT, s0, s1, s2, s3, s4, s5, s6, s7,	\
		     s8, s9, s10, s11, s12, s13, s14, s15)	\
	BLAKE3_G(ROT, 0, 4, 8, 12, s0, s1)			\
	BLAKE3_G(ROT, 1, 5, 9, 13, s2, s3)			\
	BLAKE3_G(ROT, 2, 6, 10, 14, s4, s5)			\
	BLAKE3_G(ROT, 3, 7, 11, 15, s6, s7)			\
	BLAKE3_G(ROT, 0, 5, 10, 15, s8, s9)			\
	BLAKE3_G(ROT, 1, 6, 11, 12, s10, s11)			\
	BLAKE3_G(ROT, 2, 7, 8, 13, s12, s13)			\
	BLAKE3_G(ROT, 3, 4, 9, 14, s14, s15)

#endif
