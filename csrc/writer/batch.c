/* From rows of a tree to chunks of a batch, and from chunks to units: see writer.h. */
#include <string.h>
#include <sys/stat.h>

#include "base.h"
#include "rafs.h"
#include "writer.h"

#define FLAT_ALIGN 4096u

uint32_t rafs_build_unread(const struct rafs_tree *t, uint8_t *seen, uint32_t *files)
{
	uint32_t n = 0;

	for (uint32_t row = 0; row < t->n; row++) {
		const uint32_t first = t->link[row];

		if (!S_ISREG(t->mode[row]) || !t->size[row] || t->at[first] != RAFS_TREE_NONE ||
		    seen[first])
			continue;
		seen[first] = 1;
		files[n++] = first;
	}
	return n;
}

uint32_t rafs_build_cut(const struct rafs_tree *t, const uint32_t *rows, uint32_t nrows,
			struct rafs_cut *cut, struct rafs_read_chunk *chunks, uint32_t max)
{
	uint64_t used = 0;
	uint32_t n = 0;

	for (; cut->next < nrows; cut->next++, cut->at = 0) {
		const uint32_t row = rows[cut->next];

		while (cut->at < t->size[row]) {
			const uint64_t left = t->size[row] - cut->at;
			const uint32_t len = left < t->chunk_size ? (uint32_t)left : t->chunk_size;
			const uint32_t room = len > cut->room ? len : cut->room;

			if (n == max || used + room > cut->arena_len)
				return n;
			chunks[n++] = (struct rafs_read_chunk){
				.fd = RAFS_FD_PATH, .len = len, .off = cut->at, .at = used,
				.file_off = cut->at, .row = row, .is_file = len == t->size[row],
			};
			used += room;
			cut->at += len;
		}
	}
	return n;
}

uint32_t rafs_build_locate(const struct rafs_read_chunk *chunks, uint32_t n,
			   const uint32_t *numbers, struct rafs_locations *l, uint32_t *refs,
			   uint32_t *which)
{
	uint32_t made = 0;

	l->nfirst = 0;
	for (uint32_t i = 0; i < n; i++) {
		const struct rafs_read_chunk *p = &chunks[i];

		if (numbers[i] == l->nfound) {
			l->index[made] = l->next_index++;
			l->flat[made] = l->next_flat;
			l->next_flat += ((uint64_t)p->len + FLAT_ALIGN - 1) & ~(uint64_t)(FLAT_ALIGN - 1);
			l->found[l->nfound++] = l->next++;
			which[made++] = i;
		}
		if (!p->file_off) {
			l->first_row[l->nfirst] = p->row;
			l->first_ref[l->nfirst++] = i;
		}
		refs[i] = l->found[numbers[i]];
	}
	return made;
}

uint32_t rafs_build_pack(const struct rafs_read_chunk *chunks, const uint32_t *which, uint32_t n,
			 uint32_t limit, uint8_t *arena, struct rafs_write_unit *units,
			 uint32_t *unit_of)
{
	uint32_t count = 0;

	for (uint32_t k = 0; k < n; k++) {
		const struct rafs_read_chunk *p = &chunks[which[k]];
		const int small = limit && p->is_file && 2 * (uint64_t)p->len < limit;
		struct rafs_write_unit *u = count ? &units[count - 1] : NULL;

		if (p->hole)
			memset(arena + p->at, 0, p->len);
		if (small && u && u->batched && (uint64_t)u->len + p->len < limit) {
			/* Copies, which are not stored, and room may lie between the two. */
			memmove(arena + u->at + u->len, arena + p->at, p->len);
			u->len += p->len;
		} else {
			units[count++] = (struct rafs_write_unit){
				.at = p->at, .len = p->len, .batched = (uint32_t)small,
			};
		}
		unit_of[k] = count - 1;
	}
	return count;
}
