/*
 * Compressors by number, and a unit from its compressed bytes to its uncompressed ones.
 * Output never passes the length that the caller states, whatever the input
 * claims of itself, and a result that is shorter is an error.
 */
#include <limits.h>
#include <lz4.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "codec_internal.h"

/* Compression contexts are worth keeping: setting one up costs more than a small chunk. */
static pthread_once_t cctx_once = PTHREAD_ONCE_INIT;
static pthread_key_t cctx_key;
static int cctx_key_error;

static void cctx_destroy(void *cctx)
{
	ZSTD_freeCCtx(cctx);
}

static void cctx_key_init(void)
{
	cctx_key_error = pthread_key_create(&cctx_key, cctx_destroy);
}

static ZSTD_CCtx *thread_cctx(void)
{
	ZSTD_CCtx *cctx;

	pthread_once(&cctx_once, cctx_key_init);
	if (cctx_key_error)
		return NULL;
	cctx = pthread_getspecific(cctx_key);
	if (!cctx) {
		cctx = ZSTD_createCCtx();
		if (cctx && pthread_setspecific(cctx_key, cctx)) {
			ZSTD_freeCCtx(cctx);
			cctx = NULL;
		}
	}
	return cctx;
}

struct rafs_decoder *rafs_decoder_new(void)
{
	struct rafs_decoder *d = calloc(1, sizeof(*d));

	if (!d)
		return NULL;
	if (inflateInit2(&d->inflate, -MAX_WBITS) != Z_OK) {
		free(d);
		return NULL;
	}
	d->zstd = ZSTD_createDCtx();
	d->plain = malloc(XTS_MAX_LEN);	/* not resident until an encrypted blob uses it */
	if (!d->zstd || !d->plain) {
		rafs_decoder_free(d);
		return NULL;
	}
	return d;
}

void rafs_decoder_free(struct rafs_decoder *d)
{
	if (!d)
		return;
	inflateEnd(&d->inflate);
	ZSTD_freeDCtx(d->zstd);
	rafs_xts_free(d->cipher);
	free(d->plain);
	free(d);
}

/*
 * One frame, as the format says.  That also keeps the decoders of zstd's
 * ancient frame formats, which Debian's library has built in, out of reach.
 */
static int decompress_zstd(ZSTD_DCtx *dctx, const uint8_t *src, size_t src_len, uint8_t *dst,
			   size_t dst_len)
{
	if (src_len < 4 || le32(src) != ZSTD_MAGICNUMBER ||
	    ZSTD_findFrameCompressedSize(src, src_len) != src_len ||
	    ZSTD_decompressDCtx(dctx, dst, dst_len, src, src_len) != dst_len)
		return -EBADMSG;
	return 0;
}

static int decompress_lz4(const uint8_t *src, size_t src_len, uint8_t *dst, size_t dst_len)
{
	if (src_len > INT_MAX || dst_len > INT_MAX)
		return -EINVAL;
	if (LZ4_decompress_safe((const char *)src, (char *)dst, (int)src_len, (int)dst_len) !=
	    (int)dst_len)
		return -EBADMSG;
	return 0;
}

/* One member with its trailer checked.  Stargz states only a bound of its length: more may follow. */
static int decompress_gzip(z_stream *z, const uint8_t *src, size_t src_len, uint8_t *dst,
			   size_t dst_len)
{
	if (src_len > UINT_MAX || dst_len > UINT_MAX ||
	    inflateReset2(z, MAX_WBITS + 16) != Z_OK)
		return -EINVAL;
	z->next_in = (Bytef *)src;
	z->avail_in = (uInt)src_len;
	z->next_out = dst;
	z->avail_out = (uInt)dst_len;
	if (inflate(z, Z_FINISH) != Z_STREAM_END || z->avail_out)
		return -EBADMSG;
	return 0;
}

static int decompress(struct rafs_decoder *d, uint32_t compressor, const uint8_t *src,
		      size_t src_len, uint8_t *dst, size_t dst_len)
{
	switch (compressor) {
	case RAFS_COMP_NONE:
		if (src_len != dst_len)
			return -EBADMSG;
		memcpy(dst, src, src_len);
		return 0;
	case RAFS_COMP_LZ4_BLOCK:
		return decompress_lz4(src, src_len, dst, dst_len);
	case RAFS_COMP_GZIP:
		return decompress_gzip(&d->inflate, src, src_len, dst, dst_len);
	case RAFS_COMP_ZSTD:
		return decompress_zstd(d->zstd, src, src_len, dst, dst_len);
	default:
		return -ENOTSUP;
	}
}

int64_t rafs_decompress(struct rafs_decoder *d, uint32_t compressor, const uint8_t *src,
			size_t src_len, uint8_t *dst, size_t dst_len)
{
	int err;

	if (dst_len > INT64_MAX)
		return -EINVAL;
	err = decompress(d, compressor, src, src_len, dst, dst_len);
	return err ? err : (int64_t)dst_len;
}

static int decode_single(struct rafs_decoder *d, const struct rafs_blob *blob,
			const struct rafs_unit *u, const uint8_t *src, size_t len, uint8_t *out)
{
	return decompress(d, u->flags & RAFS_UNIT_COMPRESSED ? blob->compressor : RAFS_COMP_NONE,
			  src, len, out, u->ulen);
}

static int decode_encrypted(struct rafs_decoder *d, const struct rafs_blob *blob,
			    const struct rafs_unit *u, const uint8_t *src, uint8_t *out)
{
	size_t cut;
	int err;

	if (!blob->encrypted)
		return -EINVAL;
	if (u->clen < 16)
		return -EBADMSG;
	if (u->clen == u->ulen && !(u->flags & RAFS_UNIT_COMPRESSED))
		return rafs_xts_open(&d->cipher, blob->key, blob->iv, src, u->clen, out);
	err = rafs_xts_open(&d->cipher, blob->key, blob->iv, src, u->clen, d->plain);
	if (err)
		return err;
	cut = rafs_xts_unpadded(d->plain, u->clen);
	/*
	 * The sizes of a batch tell whether it is compressed, and padding makes
	 * those of a tiny raw batch differ.  Compressed is always shorter than
	 * plain, so equal lengths mean raw.
	 */
	if ((u->flags & RAFS_UNIT_BATCH) && cut == u->ulen) {
		memcpy(out, d->plain, cut);
		return 0;
	}
	err = decode_single(d, blob, u, d->plain, cut, out);
	/* 18 bytes that only look padded: the writer could not tell them apart, decoding can. */
	if (err && cut != u->clen)
		err = decode_single(d, blob, u, d->plain, u->clen, out);
	return err;
}

int rafs_unit_decode(struct rafs_decoder *d, const struct rafs_blob *blob, uint32_t unit,
		     const uint8_t *compressed, size_t compressed_len, uint8_t *out, size_t out_len)
{
	const struct rafs_unit *u;

	if (unit >= blob->nunits)
		return -EINVAL;
	u = &blob->units[unit];
	if (compressed_len < u->clen || out_len < u->ulen)
		return -EINVAL;
	if (u->flags & RAFS_UNIT_ZRAN) {
		if (u->dict_len > blob->dicts_len || u->dict_off > blob->dicts_len - u->dict_len)
			return -EINVAL;
		return rafs_zran_decode(&d->inflate, u,
					u->dict_len ? blob->dicts + u->dict_off : NULL, compressed,
					u->clen, out, u->ulen);
	}
	if (u->flags & RAFS_UNIT_ENCRYPTED)
		return decode_encrypted(d, blob, u, compressed, out);
	return decode_single(d, blob, u, compressed, u->clen, out);
}

int64_t rafs_compress(uint32_t compressor, int level, const uint8_t *src, size_t src_len,
		      uint8_t *dst, size_t dst_len)
{
	size_t n;

	if (dst_len < rafs_compress_bound(compressor, src_len))
		return -EINVAL;
	switch (compressor) {
	case RAFS_COMP_NONE:
		memcpy(dst, src, src_len);
		return (int64_t)src_len;
	case RAFS_COMP_LZ4_BLOCK: {
		int out;

		if (src_len > LZ4_MAX_INPUT_SIZE)
			return -EINVAL;
		out = LZ4_compress_default((const char *)src, (char *)dst, (int)src_len,
					   dst_len > INT_MAX ? INT_MAX : (int)dst_len);
		return out > 0 ? out : -EINVAL;
	}
	case RAFS_COMP_ZSTD: {
		ZSTD_CCtx *cctx = thread_cctx();

		if (!cctx)
			return -ENOMEM;
		n = ZSTD_compressCCtx(cctx, dst, dst_len, src, src_len, level);
		return ZSTD_isError(n) ? -EINVAL : (int64_t)n;
	}
	default:
		return -ENOTSUP;
	}
}

size_t rafs_compress_bound(uint32_t compressor, size_t len)
{
	switch (compressor) {
	case RAFS_COMP_LZ4_BLOCK:
		return len > LZ4_MAX_INPUT_SIZE ? 0 : (size_t)LZ4_compressBound((int)len);
	case RAFS_COMP_ZSTD:
		return ZSTD_compressBound(len);
	default:
		return len;
	}
}
