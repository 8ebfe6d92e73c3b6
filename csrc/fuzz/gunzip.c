/*
 * Finding where inflating can start: any bytes at all, and gzip files of any
 * blocks and members.  From every point of the latter the same bytes come out
 * again, to every later point and to the end.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fuzz.h"
#include "writer.h"

#define POINTS 4
#define MEMBERS 2
#define BLOCKS 6
#define ROOM ((size_t)MEMBERS * (BLOCKS + 1) << 12)

static uint8_t stored[2 * ROOM], plain[ROOM];

/* A file of members, each of blocks as the input wants them; bytes stored. */
static size_t compose(struct input *in, size_t *plain_len)
{
	size_t len = 0;

	*plain_len = 0;
	for (int m = 0; m < MEMBERS && in->len; m++) {
		z_stream z = { 0 };
		int last = 0;

		MUST(deflateInit2(&z, (int)take(in, 1) % 10, Z_DEFLATED, 31, 1 + (int)take(in, 1) % 9,
				  (int)take(in, 1) % 5) == Z_OK);
		for (int b = 0; !last; b++) {
			uint8_t *from = plain + *plain_len;
			size_t n = take(in, 2) & 0xfff, step = take(in, 1);
			int flush = (int)take(in, 1) % 6;

			for (size_t i = 0; i < n; i++)
				from[i] = (uint8_t)(step & 1 ? i * step : (i >> 3) * i * step);
			last = flush == Z_FINISH || !in->len || b == BLOCKS;
			z.next_in = from;
			z.avail_in = (uInt)n;
			z.next_out = stored + len;
			z.avail_out = (uInt)(sizeof(stored) - len);
			MUST(deflate(&z, last ? Z_FINISH : flush) != Z_STREAM_ERROR);
			MUST(!z.avail_in);
			len = (size_t)(z.next_out - stored);
			*plain_len += n;
		}
		deflateEnd(&z);
	}
	return len;
}

static int inflate_all(struct rafs_gunzip *g, const uint8_t *data, size_t len, size_t step,
		       struct rafs_gz_point *end)
{
	for (size_t at = 0; at < len; at += step) {
		size_t n = len - at < step ? len - at : step;
		uint8_t *copy = malloc(n);
		int err;

		MUST(copy);
		memcpy(copy, data + at, n);
		err = rafs_gunzip_feed(g, copy, n);
		free(copy);
		if (err)
			return err;
	}
	return rafs_gunzip_end(g, end);
}

/* The same without a file: `plain` comes out, and every window that is still kept. */
static void read_all(const uint8_t *data, size_t len, size_t step, size_t plain_len,
		     uint32_t spacing)
{
	struct rafs_gunzip *g = rafs_gunzip_new(-1, spacing);
	struct rafs_gz_point end;
	const struct rafs_gz_point *points, *last;
	uint8_t out[700], window[1 << 15];
	uint64_t off = 0, n;
	int64_t got;

	MUST(g);
	for (size_t at = 0; at < len; at += step) {
		rafs_gunzip_input(g, data + at, len - at < step ? len - at : step);
		while ((got = rafs_gunzip_read(g, out, sizeof(out))) > 0) {
			MUST(off + (uint64_t)got <= plain_len);
			MUST(!memcmp(out, plain + off, (size_t)got));
			off += (uint64_t)got;
			points = rafs_gunzip_points(g, &n);
			if (!n)
				continue;
			last = &points[n - 1];
			MUST(!rafs_gunzip_before(g, last->out_off, window, last->window));
			MUST(!memcmp(window, plain + last->out_off - last->window, last->window));
			rafs_gunzip_drop(g, off > sizeof(window) ? off - sizeof(window) : 0);
		}
		MUST(!got);
	}
	MUST(!rafs_gunzip_end(g, &end) && end.out_off == plain_len && off == plain_len);
	rafs_gunzip_free(g);
}

static void check_context(const struct rafs_gz_point *from, const struct rafs_gz_point *to)
{
	struct rafs_unit unit = {
		.flags = RAFS_UNIT_ZRAN | RAFS_UNIT_COMPRESSED,
		.clen = (uint32_t)(to->end_off - from->in_off),
		.ulen = (uint32_t)(to->out_off - from->out_off),
		.dict_len = from->window,
		.prime_byte = from->byte,
		.prime_bits = from->bits,
	};
	struct rafs_blob blob = { .units = &unit, .nunits = 1, .dicts_len = from->window };
	uint8_t *out;

	MUST(from->out_off <= to->out_off && to->end_off <= to->in_off);
	if (!unit.ulen)
		return;
	blob.dicts = plain + from->out_off - from->window;
	out = malloc(unit.ulen);
	MUST(out);
	MUST(!rafs_unit_decode(decoder(), &blob, 0, stored + from->in_off, unit.clen, out, unit.ulen));
	MUST(!memcmp(out, plain + from->out_off, unit.ulen));
	free(out);
}

static void check_points(const struct rafs_gunzip *g, const struct rafs_gz_point *end)
{
	const struct rafs_gz_point *points;
	uint64_t n;

	points = rafs_gunzip_points(g, &n);
	for (uint64_t i = 0; i < n; i += 1 + n / POINTS) {
		check_context(&points[i], end);
		for (uint64_t k = i + 1; k < n; k += 1 + n / POINTS)
			check_context(&points[i], &points[k]);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };
	size_t step = take(&in, 2) + 512, plain_len, len;
	int fd = memfd_create("gunzip", MFD_CLOEXEC), err;
	struct rafs_gunzip *g = rafs_gunzip_new(fd, (uint32_t)take(&in, 2) % 4096 + 1);
	struct rafs_gz_point end;

	MUST(fd >= 0 && g);
	err = inflate_all(g, in.p, in.len, step, &end);
	MUST(err == 0 || err == -EBADMSG || err == -ENODATA);
	rafs_gunzip_free(g);
	MUST(!ftruncate(fd, 0) && !lseek(fd, 0, SEEK_SET));

	g = rafs_gunzip_new(fd, (uint32_t)take(&in, 2) % 4096 + 1);
	MUST(g);
	len = compose(&in, &plain_len);
	if (len) {
		MUST(!inflate_all(g, stored, len, step, &end));
		MUST(end.in_off == len && end.out_off == plain_len);
		check_points(g, &end);
		read_all(stored, len, step, plain_len, (uint32_t)step);
	}
	rafs_gunzip_free(g);
	close(fd);
	return 0;
}
