/*
 * OpenSSL, loaded by the first digest or cipher: relocating it costs a process 1.4 MiB, and an
 * idle daemon verifies nothing.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>

#include "codec_internal.h"

#define TEXT_OF(number) #number
#define LIBRARY(number) "libcrypto.so." TEXT_OF(number)

static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct rafs_crypto crypto;
static bool has_all;

/* Of a function: ISO C has no conversion from what dlsym returns. */
static bool find(void *library, const char *name, void *to)
{
	void *found = dlsym(library, name);

	__builtin_memcpy(to, &found, sizeof(found));
	return found;
}

static void load(void)
{
	void *library = dlopen(LIBRARY(OPENSSL_SHLIB_VERSION), RTLD_NOW | RTLD_LOCAL);

	has_all = library &&
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
	pthread_once(&once, load);
	return has_all ? &crypto : NULL;
}
