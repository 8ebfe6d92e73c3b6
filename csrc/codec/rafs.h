/*
 * RAFS v6 on the C side: chunk maps, codecs, digests.  No I/O, no policy, no
 * allocation but in the _new functions and rafs_units_decode.  Also the cffi declaration of
 * rafs_v6._codec, so: no preprocessor but plain #define of numbers.
 *
 * Every function that can fail returns a negative errno:
 *   -EINVAL  the caller's arguments contradict each other
 *   -EBADMSG the bytes are not what the format says (corrupt or hostile)
 *   -EILSEQ  decoded, but the digest or crc32c does not match
 *   -ENOMEM, -ENOTSUP as usual
 */
#pragma once

#define RAFS_COMP_NONE 0
#define RAFS_COMP_LZ4_BLOCK 1
#define RAFS_COMP_GZIP 2
#define RAFS_COMP_ZSTD 3

#define RAFS_DIGEST_BLAKE3 0
#define RAFS_DIGEST_SHA256 1

/* rafs_chunk.flags */
#define RAFS_CHUNK_HAS_DIGEST 0x1
#define RAFS_CHUNK_HAS_CRC 0x2

/* rafs_unit.flags */
#define RAFS_UNIT_COMPRESSED 0x1
#define RAFS_UNIT_ENCRYPTED 0x2
#define RAFS_UNIT_BATCH 0x4
#define RAFS_UNIT_ZRAN 0x8

#define RAFS_MAX_CHUNK_SIZE 0x1000000

/* One chunk of a blob, whatever record it came from. */
struct rafs_chunk {
	uint64_t uoff;		/* bytes, in the flat (uncompressed) blob */
	uint32_t usize;		/* bytes of data; the gap to the next chunk is zeros */
	uint32_t unit;		/* index of the unit that holds it */
	uint32_t unit_off;	/* bytes, in the decoded unit */
	uint32_t flags;		/* RAFS_CHUNK_* */
	uint32_t crc32c;
	uint8_t digest[32];
};

/*
 * The least that can be fetched and decoded alone: a single chunk, a batch, or
 * a zran context with all its chunks.  Chunks of a unit are consecutive.
 */
struct rafs_unit {
	uint64_t coff;		/* bytes, in the compressed blob */
	uint32_t clen;		/* compressed bytes */
	uint32_t ulen;		/* decoded bytes, at most RAFS_MAX_CHUNK_SIZE */
	uint32_t first;		/* first chunk */
	uint32_t count;		/* chunks */
	uint32_t flags;		/* RAFS_UNIT_* */
	uint32_t dict_len;	/* zran: bytes of window, 0..32768 */
	uint64_t dict_off;	/* zran: bytes, in rafs_blob.dicts */
	uint8_t prime_byte;	/* zran: the byte before coff ... */
	uint8_t prime_bits;	/* ... and how many of its high bits are still due, 0..7 */
};

/* What decoding needs to know of a blob.  Pointers are the caller's. */
struct rafs_blob {
	uint32_t compressor;	/* RAFS_COMP_* */
	uint32_t digester;	/* RAFS_DIGEST_* */
	uint32_t encrypted;	/* 1: AES-128-XTS with key and iv */
	uint32_t nchunks;
	uint32_t nunits;
	uint8_t key[32];
	uint8_t iv[16];
	struct rafs_chunk *chunks;
	struct rafs_unit *units;
	const uint8_t *dicts;	/* zran windows */
	uint64_t dicts_len;
};

/* What the blob table and the CCT header say about a CCT (format.md 1.5, 2.3). */
struct rafs_cct_info {
	uint32_t features;	/* feature word of the blob record */
	uint32_t nchunks;
	uint64_t data_size;	/* bytes of compressed chunk data: compressed_end must not pass it */
	uint64_t flat_size;	/* uncompressed_size of the blob record */
	uint64_t ctx_off;	/* zran/batch contexts in the uncompressed CCT */
	uint64_t ctx_size;
	uint32_t nctx;
};

/*
 * Decode and validate an uncompressed CCT of len bytes.  chunks has room for
 * info->nchunks, units for as many.  On success out->chunks, units, nchunks,
 * nunits, dicts, dicts_len are set (dicts points into cct).  err, of errlen
 * bytes, gets one line that says what is wrong.
 */
int rafs_cct_decode(const uint8_t *cct, size_t len, const struct rafs_cct_info *info,
		    struct rafs_chunk *chunks, struct rafs_unit *units,
		    struct rafs_blob *out, char *err, size_t errlen);

/*
 * tarfs and other blobs that are their own flat file: windows of `window`
 * bytes, one chunk a unit, no digest.
 */
int rafs_identity_map(uint64_t size, uint32_t window, struct rafs_chunk *chunks,
		      struct rafs_unit *units, struct rafs_blob *out);

/*
 * Take digests (and crc32c) from the bootstrap's chunk table: n records of 80
 * bytes.  Those of blob_index whose uncompressed offset and size agree with
 * the chunk are used.  Returns the number of chunks that have a digest now.
 */
int64_t rafs_chunk_table_apply(const uint8_t *table, size_t len, uint32_t blob_index,
			       struct rafs_blob *blob);
/* The same from a blob.digest array: 32 bytes a chunk, in order. */
int64_t rafs_digest_array_apply(const uint8_t *array, size_t len, struct rafs_blob *blob);

/* First chunk whose padded extent ends after off; nchunks when there is none. */
uint32_t rafs_chunk_find(const struct rafs_blob *blob, uint64_t off);

/*
 * Which units have all their pages of 4096 bytes in a bitmap, least significant bit first: a byte
 * each, 1 or 0.  flat_size: where the flat file ends.  Returns how many.
 */
uint32_t rafs_units_present(const struct rafs_blob *blob, uint64_t flat_size,
			    const uint8_t *pages, uint8_t *present);

/* Reusable decoder state (zstd context, inflate state, bounce buffers); one per thread. */
struct rafs_decoder;
struct rafs_decoder *rafs_decoder_new(void);
void rafs_decoder_free(struct rafs_decoder *d);

/*
 * Decode one unit from its clen compressed bytes into out (>= ulen bytes).
 * Exactly ulen bytes are produced or an error is returned.  Nothing verified.
 */
int rafs_unit_decode(struct rafs_decoder *d, const struct rafs_blob *blob, uint32_t unit,
		     const uint8_t *compressed, size_t compressed_len, uint8_t *out, size_t out_len);

/*
 * 0 when the chunk has no digest and no crc, or it matches; -EILSEQ when not.
 * The digest says more, so the crc is looked at only where there is no digest.
 */
int rafs_chunk_verify(const struct rafs_blob *blob, uint32_t chunk, const uint8_t *data);

/*
 * Many units decoded and verified in one call, over several threads: the inner
 * loop of whoever reads a blob from end to end.
 *
 * One unit.  The caller fills the first part; compressed and out must not overlap.
 */
struct rafs_unit_job {
	const struct rafs_blob *blob;
	uint32_t unit;
	const uint8_t *compressed;	/* the unit's clen bytes */
	uint8_t *out;		/* room for its ulen bytes */

	int32_t error;		/* 0, or a negative errno of decoding */
	uint32_t bad;		/* decoded, but this many of its chunks do not match */
};

/*
 * Decode n units and verify every chunk that has a digest or crc32c.  All are
 * tried, whatever becomes of the others.  Returns how many have an error or a
 * bad chunk, or -EINVAL, -ENOMEM (nothing was done).
 */
int64_t rafs_units_decode(struct rafs_unit_job *jobs, uint32_t n, uint32_t threads);

/*
 * Whole buffers, for metadata and builders.  Returns bytes produced.
 * compress: dst_len >= rafs_compress_bound(); level only for zstd.
 */
int64_t rafs_decompress(struct rafs_decoder *d, uint32_t compressor, const uint8_t *src,
			size_t src_len, uint8_t *dst, size_t dst_len);
int64_t rafs_compress(uint32_t compressor, int level, const uint8_t *src, size_t src_len,
		      uint8_t *dst, size_t dst_len);
size_t rafs_compress_bound(uint32_t compressor, size_t len);
int rafs_digest(uint32_t digester, const uint8_t *data, size_t len, uint8_t *out);
/* What SHA-256 and AES need is loaded, so that it cannot fail later.  0 or -ENOTSUP. */
int rafs_crypto_begin(void);
uint32_t rafs_crc32c(const uint8_t *data, size_t len);

/*
 * AES-128-XTS as RAFS uses it (format.md 6.1), units below 16 bytes padded.
 * dst has room for max(src_len, 18).  Returns the bytes written.
 */
int64_t rafs_xts_encrypt(const uint8_t *key, const uint8_t *iv, const uint8_t *src,
			 size_t src_len, uint8_t *dst, size_t dst_len);
int64_t rafs_xts_decrypt(const uint8_t *key, const uint8_t *iv, const uint8_t *src,
			 size_t src_len, uint8_t *dst, size_t dst_len);

/* What the rules for a tree need to know of the tables, which are checked before. */
struct rafs_bootstrap_blob {
	uint64_t flat_size;	/* bytes, uncompressed */
	uint32_t chunk_count;
	uint32_t is_tarfs;	/* its chunks are in no chunk table */
};

struct rafs_bootstrap {
	const uint8_t *data;	/* the bootstrap */
	size_t len;
	uint64_t meta;		/* bytes: where nid 0 is */
	uint64_t root_nid;
	uint64_t chunk_table;	/* bytes */
	uint64_t chunk_table_len;
	uint32_t block_size;
	uint32_t chunk_size;
	const struct rafs_bootstrap_blob *blobs;
	uint32_t nblobs;
};

/*
 * 1 when every rule of rafs_v6/validate.py holds for all that the root leads
 * to; 0 when one does not, or (an inode with more than 64 xattrs) it would take
 * too long to tell.  -EINVAL, -ENOMEM.
 */
int rafs_bootstrap_is_sound(const struct rafs_bootstrap *t);
