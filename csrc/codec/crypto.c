/*
 * OpenSSL, loaded by the first digest or cipher: relocating it costs a process 1.4 MiB, and an
 * idle daemon verifies nothing.  What fails (no descriptor, no memory) is tried again.
 */
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "codec_internal.h"

#define TEXT_OF(number) #number
#define LIBRARY(number) "libcrypto.so." TEXT_OF(number)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct rafs_crypto crypto;
static atomic_bool has_all;
static _Atomic(EVP_MD *) sha256;
static _Atomic(EVP_CIPHER *) aes_xts;

/* Of a function: ISO C has no conversion from what dlsym returns. */
static bool find(void *library, const char *name, void *to)
{
	void *found = dlsym(library, name);

	__builtin_memcpy(to, &found, sizeof(found));
	return found;
}

static bool load(void)
{
	void *library = dlopen(LIBRARY(OPENSSL_SHLIB_VERSION), RTLD_NOW | RTLD_LOCAL);

	return library &&
	       find(library, "EVP_MD_fetch", &crypto.md_fetch) &&
	       find(library, "EVP_Digest", &crypto.digest) &&
	       find(library, "EVP_CIPHER_fetch", &crypto.cipher_fetch) &&
	       find(library, "EVP_CIPHER_CTX_new", &crypto.ctx_new) &&
	       find(library, "EVP_CIPHER_CTX_free", &crypto.ctx_free) &&
	       find(library, "EVP_CipherInit_ex", &crypto.cipher_init) &&
	       find(library, "EVP_CipherUpdate", &crypto.cipher_update);
}

const struct rafs_crypto *rafs_crypto(void)
{
	if (!atomic_load(&has_all)) {
		pthread_mutex_lock(&lock);
		if (!atomic_load(&has_all))
			atomic_store(&has_all, load());
		pthread_mutex_unlock(&lock);
	}
	return atomic_load(&has_all) ? &crypto : NULL;
}

/* Fetching by name costs more than hashing a small chunk. */
EVP_MD *rafs_sha256(void)
{
	if (!atomic_load(&sha256) && rafs_crypto()) {
		pthread_mutex_lock(&lock);
		if (!atomic_load(&sha256))
			atomic_store(&sha256, crypto.md_fetch(NULL, "SHA256", NULL));
		pthread_mutex_unlock(&lock);
	}
	return atomic_load(&sha256);
}

EVP_CIPHER *rafs_aes_xts(void)
{
	if (!atomic_load(&aes_xts) && rafs_crypto()) {
		pthread_mutex_lock(&lock);
		if (!atomic_load(&aes_xts))
			atomic_store(&aes_xts, crypto.cipher_fetch(NULL, "AES-128-XTS", NULL));
		pthread_mutex_unlock(&lock);
	}
	return atomic_load(&aes_xts);
}

int rafs_crypto_begin(void)
{
	return rafs_sha256() && rafs_aes_xts() ? 0 : -ENOTSUP;
}
