/*
 * Inflate from the middle of a .tar.gz: a zran context gives the window and
 * the bits left over from the byte before.  Time and space are bounded by the
 * lengths that come in; no input makes it write past out_len.
 */
#include <string.h>

#include "codec_internal.h"

#define GZIP_TRAILER 8
#define GZIP_FIXED_HEADER 10

#define GZIP_FHCRC 0x02
#define GZIP_FEXTRA 0x04
#define GZIP_FNAME 0x08
#define GZIP_FCOMMENT 0x10
#define GZIP_RESERVED 0xe0

static int is_gzip(const uint8_t *p, size_t len)
{
	return len >= 3 && p[0] == 0x1f && p[1] == 0x8b && p[2] == 8;
}

/* Past the NUL that ends the string at pos, or 0 when it has none. */
static size_t skip_string(const uint8_t *p, size_t len, size_t pos)
{
	const uint8_t *nul = pos < len ? memchr(p + pos, 0, len - pos) : NULL;

	return nul ? (size_t)(nul - p) + 1 : 0;
}

/* Length of the gzip member header at p (RFC 1952), or 0 when it is none. */
static size_t gzip_header_len(const uint8_t *p, size_t len)
{
	size_t pos = GZIP_FIXED_HEADER;
	uint8_t flags;

	if (len < GZIP_FIXED_HEADER || !is_gzip(p, len) || (p[3] & GZIP_RESERVED))
		return 0;
	flags = p[3];
	if (flags & GZIP_FEXTRA) {
		if (len - pos < 2)
			return 0;
		pos += 2 + (p[pos] | (size_t)p[pos + 1] << 8);
	}
	if (flags & GZIP_FNAME) {
		pos = skip_string(p, len, pos);
		if (!pos)
			return 0;
	}
	if (flags & GZIP_FCOMMENT) {
		pos = skip_string(p, len, pos);
		if (!pos)
			return 0;
	}
	if (flags & GZIP_FHCRC)
		pos += 2;
	return pos <= len ? pos : 0;
}

/* Go on with a raw deflate stream, and with the members that follow it. */
static int inflate_members(z_stream *z)
{
	while (z->avail_out) {
		int ret = inflate(z, Z_NO_FLUSH);
		size_t header;

		if (!z->avail_out)
			break;
		if (ret != Z_STREAM_END || z->avail_in < GZIP_TRAILER)
			return -EBADMSG;
		z->next_in += GZIP_TRAILER;
		z->avail_in -= GZIP_TRAILER;
		header = gzip_header_len(z->next_in, z->avail_in);
		if (!header || inflateReset(z) != Z_OK)
			return -EBADMSG;
		z->next_in += header;
		z->avail_in -= (uInt)header;
	}
	return 0;
}

static void set_buffers(z_stream *z, const uint8_t *in, size_t in_len, uint8_t *out,
			size_t out_len)
{
	z->next_in = (Bytef *)in;
	z->avail_in = (uInt)in_len;
	z->next_out = out;
	z->avail_out = (uInt)out_len;
}

int rafs_zran_decode(z_stream *z, const struct rafs_unit *unit, const uint8_t *dict,
		     const uint8_t *in, size_t in_len, uint8_t *out, size_t out_len)
{
	if (in_len > UINT32_MAX || out_len > UINT32_MAX || unit->prime_bits > 7 ||
	    inflateReset2(z, -MAX_WBITS) != Z_OK)
		return -EINVAL;

	/*
	 * nydus-image lets a context begin at the *trailer* of a member when a
	 * member ends where a tar header does, as in most eStargz layers.  No
	 * deflate data are due there, so window and bits mean nothing.  The test
	 * can hit good data by chance: then this fails, and they are decoded below.
	 */
	if (in_len > GZIP_TRAILER && is_gzip(in + GZIP_TRAILER, in_len - GZIP_TRAILER)) {
		size_t skip = gzip_header_len(in + GZIP_TRAILER, in_len - GZIP_TRAILER);

		if (skip) {
			skip += GZIP_TRAILER;
			set_buffers(z, in + skip, in_len - skip, out, out_len);
			if (inflate_members(z) == 0)
				return 0;
			if (inflateReset2(z, -MAX_WBITS) != Z_OK)
				return -EINVAL;
		}
	}

	if (unit->prime_bits &&
	    inflatePrime(z, unit->prime_bits, unit->prime_byte >> (8 - unit->prime_bits)) != Z_OK)
		return -EINVAL;
	if (unit->dict_len && inflateSetDictionary(z, dict, unit->dict_len) != Z_OK)
		return -EINVAL;
	set_buffers(z, in, in_len, out, out_len);
	return inflate_members(z);
}
