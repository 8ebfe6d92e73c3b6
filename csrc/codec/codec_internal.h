/* What the files behind rafs.h share with each other and with nobody else. */
#ifndef NYDUS_CODEC_INTERNAL_H
#define NYDUS_CODEC_INTERNAL_H

#include <zlib.h>
#include <zstd.h>
#include <openssl/evp.h>

#include "base.h"
#include "rafs.h"

/* A data unit of XTS is at most 2^20 blocks (IEEE 1619; OpenSSL insists). */
#define XTS_MAX_LEN (16u << 20)
/* What a unit below 16 bytes grows to before it is encrypted. */
#define XTS_PADDED_LEN 18

/* OpenSSL's functions under its own types (crypto.c). */
struct rafs_crypto {
	__typeof__(&EVP_MD_fetch) md_fetch;
	__typeof__(&EVP_Digest) digest;
	__typeof__(&EVP_CIPHER_fetch) cipher_fetch;
	__typeof__(&EVP_CIPHER_CTX_new) ctx_new;
	__typeof__(&EVP_CIPHER_CTX_free) ctx_free;
	__typeof__(&EVP_CipherInit_ex) cipher_init;
	__typeof__(&EVP_CipherUpdate) cipher_update;
};

/* NULL: it cannot be loaded now. */
const struct rafs_crypto *rafs_crypto(void);
EVP_MD *rafs_sha256(void);
EVP_CIPHER *rafs_aes_xts(void);

struct rafs_decoder {
	ZSTD_DCtx *zstd;
	z_stream inflate;
	EVP_CIPHER_CTX *cipher;	/* NULL until an encrypted blob uses it */
	uint8_t *plain;		/* XTS_MAX_LEN bytes: a decrypted unit that is still compressed */
};

/* Little-endian loads: on disk everything is, and nothing need be aligned. */
static inline uint32_t le32(const uint8_t *p)
{
	uint32_t v;

	__builtin_memcpy(&v, p, sizeof(v));
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	v = __builtin_bswap32(v);
#endif
	return v;
}

static inline uint64_t le64(const uint8_t *p)
{
	return le32(p) | (uint64_t)le32(p + 4) << 32;
}

#define RAFS_MAX_THREADS 64

/* Call worker(arg) in up to so many threads, one of them the caller's, and wait for all. */
void rafs_in_parallel(void *(*worker)(void *), void *arg, uint32_t threads);

void rafs_blake3(const uint8_t *data, size_t len, uint8_t out[32]);

/* Exactly out_len bytes of a zran context, or -EBADMSG. */
int rafs_zran_decode(z_stream *z, const struct rafs_unit *unit, const uint8_t *dict,
		     const uint8_t *in, size_t in_len, uint8_t *out, size_t out_len);

/*
 * Decrypt without looking for padding; 16 <= len <= XTS_MAX_LEN.  *ctx: NULL, or what the last call
 * has made, for rafs_xts_free.
 */
int rafs_xts_open(EVP_CIPHER_CTX **ctx, const uint8_t *key, const uint8_t *iv,
		  const uint8_t *src, size_t len, uint8_t *dst);
void rafs_xts_free(EVP_CIPHER_CTX *ctx);
/* How many of the len decrypted bytes were there before padding. */
size_t rafs_xts_unpadded(const uint8_t *plain, size_t len);

#endif
