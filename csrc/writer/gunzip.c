/*
 * A .gz inflated once, to a file or as it is read, while the places are noted where inflating
 * can start again: see writer.h.  zlib stops at every deflate block (Z_BLOCK).
 * Memory is one buffer, what is kept, and a point for every `spacing` plain bytes.
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include "base.h"
#include "rafs.h"
#include "writer.h"

#define OUT_LEN (256u << 10)
#define WINDOW 32768u
#define GZIP_WRAPPED (15 + 16)

/* z_stream.data_type after Z_BLOCK (zlib.h, inflate) */
#define BITS_LEFT 0x7
#define LAST_BLOCK 0x40
#define BLOCK_END 0x80

enum state { MEMBER, BETWEEN, PADDING };

struct rafs_gunzip {
	z_stream z;
	int fd;
	enum state state;
	uint32_t spacing;
	uint64_t in_off, out_off;
	uint64_t member_off;	/* plain */
	uint64_t data_end;	/* stored: behind the last deflate block of the last member */
	uint8_t last_byte;
	struct rafs_gz_point *points;
	uint64_t n, room;
	/* without a file: plain bytes from kept_off to out_off, of which those from taken are new */
	uint8_t *kept;
	uint64_t kept_off, kept_room, taken;
	uint8_t out[OUT_LEN];
};

struct rafs_gunzip *rafs_gunzip_new(int fd, uint32_t spacing)
{
	struct rafs_gunzip *g = calloc(1, sizeof(*g));

	if (!g)
		return NULL;
	g->fd = fd;
	g->spacing = spacing;
	g->state = BETWEEN;
	if (inflateInit2(&g->z, GZIP_WRAPPED) != Z_OK) {
		free(g);
		return NULL;
	}
	return g;
}

void rafs_gunzip_free(struct rafs_gunzip *g)
{
	if (!g)
		return;
	inflateEnd(&g->z);
	free(g->points);
	free(g->kept);
	free(g);
}

static int write_whole(int fd, const uint8_t *data, size_t len)
{
	while (len) {
		ssize_t done = write(fd, data, len);

		if (done < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		data += done;
		len -= (size_t)done;
	}
	return 0;
}

static int keep(struct rafs_gunzip *g, const uint8_t *data, size_t len)
{
	const uint64_t have = g->out_off - g->kept_off, need = have + len;

	if (!len)
		return 0;
	if (need > g->kept_room) {
		uint64_t room = need > 2 * g->kept_room ? need : 2 * g->kept_room;
		void *kept = realloc(g->kept, room);

		if (!kept)
			return -ENOMEM;
		g->kept = kept;
		g->kept_room = room;
	}
	memcpy(g->kept + have, data, len);
	return 0;
}

static struct rafs_gz_point *add_point(struct rafs_gunzip *g)
{
	struct rafs_gz_point *last = g->n ? &g->points[g->n - 1] : NULL;

	/* The later of two at the same plain byte has less input to read. */
	if (last && last->out_off == g->out_off)
		return last;
	if (last && g->out_off - last->out_off < g->spacing)
		return NULL;
	if (g->n == g->room) {
		uint64_t room = g->room ? 2 * g->room : 64;
		void *points = realloc(g->points, room * sizeof(*g->points));

		if (!points)
			return NULL;	/* a point less is no fault */
		g->points = points;
		g->room = room;
	}
	memset(&g->points[g->n], 0, sizeof(*g->points));
	return &g->points[g->n++];
}

static void note_point(struct rafs_gunzip *g)
{
	const uint64_t history = g->out_off - g->member_off;
	struct rafs_gz_point *p = add_point(g);
	uint64_t end_off = history || !g->data_end ? g->in_off : g->data_end;

	if (p && p->out_off == g->out_off && p->end_off)
		end_off = p->end_off;
	if (p)
		*p = (struct rafs_gz_point){
			.in_off = g->in_off,
			.out_off = g->out_off,
			.end_off = end_off,
			.window = history < WINDOW ? (uint32_t)history : WINDOW,
			.byte = g->last_byte,
			.bits = g->z.data_type & BITS_LEFT,
		};
}

static int inflate_some(struct rafs_gunzip *g)
{
	z_stream *z = &g->z;
	const uint8_t *from = z->next_in;
	size_t made;
	int ret, err;

	z->next_out = g->out;
	z->avail_out = OUT_LEN;
	ret = inflate(z, Z_BLOCK);
	if (z->next_in > from)
		g->last_byte = z->next_in[-1];
	g->in_off += (uint64_t)(z->next_in - from);
	made = OUT_LEN - z->avail_out;
	err = g->fd < 0 ? keep(g, g->out, made) : write_whole(g->fd, g->out, made);
	if (err)
		return err;
	g->out_off += made;
	if (ret == Z_STREAM_END) {
		g->state = BETWEEN;
		return inflateReset(z) == Z_OK ? 0 : -EBADMSG;
	}
	if (ret == Z_MEM_ERROR)
		return -ENOMEM;
	/* Z_BUF_ERROR: nothing to do with this little input, more will come. */
	if (ret != Z_OK && ret != Z_BUF_ERROR)
		return -EBADMSG;
	if (z->data_type & BLOCK_END && z->data_type & LAST_BLOCK)
		g->data_end = g->in_off;
	else if (z->data_type & BLOCK_END)
		note_point(g);
	return ret == Z_BUF_ERROR && z->avail_in && !made ? -EBADMSG : 0;
}

/* What may stand between members: nothing, or zeros until the end of the file. */
static int begin_member(struct rafs_gunzip *g)
{
	if (g->state == BETWEEN && *g->z.next_in) {
		g->state = MEMBER;
		g->member_off = g->out_off;
		return 0;
	}
	if (!g->in_off)
		return -EBADMSG;
	g->state = PADDING;
	while (g->z.avail_in) {
		if (*g->z.next_in)
			return -EBADMSG;
		g->z.next_in++;
		g->z.avail_in--;
		g->in_off++;
	}
	return 0;
}

int rafs_gunzip_feed(struct rafs_gunzip *g, const uint8_t *in, size_t len)
{
	int err = 0;

	if (len > UINT32_MAX)
		return -EINVAL;
	g->z.next_in = (Bytef *)in;
	g->z.avail_in = (uInt)len;
	while (!err && g->z.avail_in)
		err = g->state == MEMBER ? inflate_some(g) : begin_member(g);
	/* What zlib took in but had no room to give out yet. */
	while (!err && g->state == MEMBER && !g->z.avail_out)
		err = inflate_some(g);
	return err;
}

void rafs_gunzip_input(struct rafs_gunzip *g, const uint8_t *in, size_t len)
{
	g->z.next_in = (Bytef *)in;
	g->z.avail_in = (uInt)len;
}

int64_t rafs_gunzip_read(struct rafs_gunzip *g, uint8_t *to, size_t len)
{
	while (g->taken == g->out_off) {
		int err;

		if (g->state == MEMBER && (g->z.avail_in || !g->z.avail_out))
			err = inflate_some(g);
		else if (g->z.avail_in)
			err = begin_member(g);
		else
			return 0;
		if (err)
			return err;
	}
	if (len > g->out_off - g->taken)
		len = (size_t)(g->out_off - g->taken);
	memcpy(to, g->kept + (g->taken - g->kept_off), len);
	g->taken += len;
	return (int64_t)len;
}

void rafs_gunzip_drop(struct rafs_gunzip *g, uint64_t off)
{
	if (off > g->taken)
		off = g->taken;
	/* Seldom, so that it is not moved again and again. */
	if (off <= g->kept_off || off - g->kept_off < (g->out_off - g->kept_off) / 2)
		return;
	memmove(g->kept, g->kept + (off - g->kept_off), g->out_off - off);
	g->kept_off = off;
}

int rafs_gunzip_before(const struct rafs_gunzip *g, uint64_t off, uint8_t *to, size_t len)
{
	if (len > off || off - len < g->kept_off || off > g->out_off)
		return -EINVAL;
	memcpy(to, g->kept + (off - len - g->kept_off), len);
	return 0;
}

int rafs_gunzip_end(struct rafs_gunzip *g, struct rafs_gz_point *end)
{
	if (g->state == MEMBER || !g->in_off)
		return -ENODATA;
	*end = (struct rafs_gz_point){
		.in_off = g->in_off, .out_off = g->out_off, .end_off = g->data_end,
	};
	return 0;
}

const struct rafs_gz_point *rafs_gunzip_points(const struct rafs_gunzip *g, uint64_t *n)
{
	*n = g->n;
	return g->points;
}
