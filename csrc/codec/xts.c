/*
 * AES-128-XTS as RAFS uses it: every unit is one XTS data unit under the
 * blob's one tweak.  What XTS cannot take, a unit below one AES block, is
 * padded by a rule of RAFS's own.
 */
#include <string.h>

#include "codec_internal.h"

#define AES_BLOCK 16

static const uint8_t pad_mark[2] = { 0x78, 0x90 };

static int xts_run(EVP_CIPHER_CTX **ctx, int enc, const uint8_t *key, const uint8_t *iv,
		   const uint8_t *src, size_t len, uint8_t *dst)
{
	EVP_CIPHER *aes_xts;
	int n = 0;

	if (len < AES_BLOCK || len > XTS_MAX_LEN)
		return -EINVAL;
	/* Equal halves void XTS; OpenSSL refuses them for one direction only. */
	if (memcmp(key, key + 16, 16) == 0)
		return -EINVAL;
	aes_xts = rafs_aes_xts();
	if (!aes_xts)
		return -ENOTSUP;
	if (!*ctx)
		*ctx = rafs_crypto()->ctx_new();
	if (!*ctx)
		return -ENOMEM;
	if (rafs_crypto()->cipher_init(*ctx, aes_xts, NULL, key, iv, enc) != 1 ||
	    rafs_crypto()->cipher_update(*ctx, dst, &n, src, (int)len) != 1 || n != (int)len)
		return -EBADMSG;
	return 0;
}

void rafs_xts_free(EVP_CIPHER_CTX *ctx)
{
	if (ctx)
		rafs_crypto()->ctx_free(ctx);
}

int rafs_xts_open(EVP_CIPHER_CTX **ctx, const uint8_t *key, const uint8_t *iv,
		  const uint8_t *src, size_t len, uint8_t *dst)
{
	return xts_run(ctx, 0, key, iv, src, len, dst);
}

size_t rafs_xts_unpadded(const uint8_t *plain, size_t len)
{
	if (len == XTS_PADDED_LEN && memcmp(plain + AES_BLOCK, pad_mark, 2) == 0 &&
	    plain[AES_BLOCK - 1] < AES_BLOCK)
		return AES_BLOCK - plain[AES_BLOCK - 1];
	return len;
}

int64_t rafs_xts_encrypt(const uint8_t *key, const uint8_t *iv, const uint8_t *src,
			 size_t src_len, uint8_t *dst, size_t dst_len)
{
	uint8_t padded[XTS_PADDED_LEN];
	EVP_CIPHER_CTX *ctx = NULL;
	int err;

	if (src_len == 0)
		return -EINVAL;
	if (src_len < AES_BLOCK) {
		memset(padded, (int)(AES_BLOCK - src_len), AES_BLOCK);
		memcpy(padded, src, src_len);
		memcpy(padded + AES_BLOCK, pad_mark, 2);
		src = padded;
		src_len = XTS_PADDED_LEN;
	}
	if (dst_len < src_len)
		return -EINVAL;
	err = xts_run(&ctx, 1, key, iv, src, src_len, dst);
	rafs_xts_free(ctx);
	return err ? err : (int64_t)src_len;
}

int64_t rafs_xts_decrypt(const uint8_t *key, const uint8_t *iv, const uint8_t *src,
			 size_t src_len, uint8_t *dst, size_t dst_len)
{
	EVP_CIPHER_CTX *ctx = NULL;
	int err;

	if (dst_len < src_len)
		return -EINVAL;
	err = xts_run(&ctx, 0, key, iv, src, src_len, dst);
	rafs_xts_free(ctx);
	return err ? err : (int64_t)rafs_xts_unpadded(dst, src_len);
}
