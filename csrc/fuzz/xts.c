/* AES-XTS with RAFS's padding: what is sealed opens again, and any bytes open to no more bytes. */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };
	const size_t key_len = 32, iv_len = 16;
	uint8_t *key, *iv, *plain, *sealed, *opened;
	size_t got_key, got_iv, len;
	int64_t n, back;

	key = take_copy(&in, key_len, &got_key);
	iv = take_copy(&in, iv_len, &got_iv);
	plain = take_copy(&in, in.len, &len);
	sealed = malloc(len < XTS_PADDED_LEN ? XTS_PADDED_LEN : len);
	opened = malloc(len < XTS_PADDED_LEN ? XTS_PADDED_LEN : len);
	MUST(sealed && opened);
	if (got_key == key_len && got_iv == iv_len) {
		n = rafs_xts_encrypt(key, iv, plain, len, sealed,
				     len < XTS_PADDED_LEN ? XTS_PADDED_LEN : len);
		if (!len || memcmp(key, key + 16, 16) == 0) {
			MUST(n == -EINVAL);
		} else {
			MUST(n == (int64_t)(len < 16 ? XTS_PADDED_LEN : len));
			back = rafs_xts_decrypt(key, iv, sealed, (size_t)n, opened, (size_t)n);
			/* Plain data of 18 bytes may look padded: the format cannot tell. */
			MUST(back == (int64_t)len || len == XTS_PADDED_LEN);
			MUST(back > 0 && memcmp(opened, plain, (size_t)back) == 0);
		}
		n = rafs_xts_decrypt(key, iv, plain, len, opened, len);
		MUST(n == -EINVAL || (n > 0 && n <= (int64_t)len));
	}
	free(key);
	free(iv);
	free(plain);
	free(sealed);
	free(opened);
	return 0;
}
