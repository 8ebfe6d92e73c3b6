/* A directory's entries, sorted, as columns of a tree: see writer.h. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base.h"
#include "rafs.h"
#include "writer.h"

#define NAME_LEN_MAX 255u	/* EROFS_NAME_LEN */
#define NOBODY UINT32_MAX	/* "no owner" to Linux */

struct found {
	uint32_t off;		/* in names */
	uint32_t len;
	const char *names;	/* as they came; for the sort */
};

struct rafs_scan_memory {
	struct found *found;
	uint32_t found_room;
	char *raw;		/* names as they come, each ended by a zero */
	size_t raw_room;
	void *columns;
	uint32_t room;
	size_t names_room;
};

static void *grown(void *old, size_t size)
{
	return realloc(old, size ? size : 1);
}

static int by_name(const void *a, const void *b)
{
	const struct found *x = a, *y = b;

	/* No name has a zero inside, and strcmp compares bytes without a sign. */
	return strcmp(x->names + x->off, y->names + y->off);
}

/* All names of the directory but the dots; their number, or a negative errno. */
static int64_t read_names(struct rafs_scan_memory *m, DIR *dir)
{
	size_t used = 0;
	uint32_t n = 0;

	for (;;) {
		const struct dirent *entry;
		size_t len;

		errno = 0;
		entry = readdir(dir);
		if (!entry)
			break;
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		len = strlen(entry->d_name);
		if (n == UINT32_MAX || used + len + 1 > UINT32_MAX)
			return -EFBIG;
		if (n == m->found_room) {
			const uint32_t room = n > UINT32_MAX / 2 ? UINT32_MAX : 2 * n + 64;
			void *more = grown(m->found, (size_t)room * sizeof(*m->found));

			if (!more)
				return -ENOMEM;
			m->found = more;
			m->found_room = room;
		}
		if (used + len + 1 > m->raw_room) {
			const size_t room = 2 * (used + len + 1) + 4096;
			void *more = grown(m->raw, room);

			if (!more)
				return -ENOMEM;
			m->raw = more;
			m->raw_room = room;
		}
		memcpy(m->raw + used, entry->d_name, len + 1);
		m->found[n++] = (struct found){ .off = (uint32_t)used, .len = (uint32_t)len };
		used += len + 1;
	}
	if (errno)
		return -errno;
	for (uint32_t i = 0; i < n; i++)
		m->found[i].names = m->raw;
	qsort(m->found, n, sizeof(*m->found), by_name);
	return n;
}

/* Room for n entries in all columns, which lie behind each other, the widest first. */
static int make_room(struct rafs_scan *s, uint32_t n, size_t names)
{
	struct rafs_scan_memory *m = s->memory;
	uint8_t *at;

	if (n > m->room || !m->columns) {
		const uint32_t room = n + n / 4 + 16;
		void *more = grown(m->columns, (size_t)room * (8 + 8 + 4 + 4 + 4 + 4 + 4 + 2 + 1));

		if (!more)
			return -ENOMEM;
		m->columns = more;
		m->room = room;
	}
	if (names > m->names_room) {
		void *more = grown(s->names, names);

		if (!more)
			return -ENOMEM;
		s->names = more;
		m->names_room = names;
	}
	at = m->columns;
	s->mtime = (int64_t *)at;
	at += (size_t)m->room * 8;
	s->size = (uint64_t *)at;
	at += (size_t)m->room * 8;
	s->uid = (uint32_t *)at;
	at += (size_t)m->room * 4;
	s->gid = (uint32_t *)at;
	at += (size_t)m->room * 4;
	s->mtime_nsec = (uint32_t *)at;
	at += (size_t)m->room * 4;
	s->at = (uint32_t *)at;
	at += (size_t)m->room * 4;
	s->name_end = (uint32_t *)at;
	at += (size_t)m->room * 4;
	s->mode = (uint16_t *)at;
	at += (size_t)m->room * 2;
	s->is_special = at;
	return 0;
}

static int look_at(struct rafs_scan *s, int dir, char *path, size_t path_len, size_t path_room,
		   uint32_t i)
{
	const struct found *f = &s->memory->found[i];
	const char *name = s->memory->raw + f->off;
	struct stat st;
	ssize_t xattrs;

	if (f->len > NAME_LEN_MAX)
		return -ENAMETOOLONG;
	if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW))
		return -errno;
	if (path_len + 1 + f->len + 1 > path_room)
		return -ENAMETOOLONG;
	path[path_len] = '/';
	memcpy(path + path_len + 1, name, f->len + 1);
	xattrs = llistxattr(path, NULL, 0);
	if (xattrs < 0 && errno != EOPNOTSUPP)
		return -errno;
	s->mode[i] = (uint16_t)st.st_mode;
	s->uid[i] = st.st_uid;
	s->gid[i] = st.st_gid;
	s->mtime[i] = st.st_mtim.tv_sec;
	s->mtime_nsec[i] = (uint32_t)st.st_mtim.tv_nsec;
	s->size[i] = S_ISREG(st.st_mode) || S_ISLNK(st.st_mode) ? (uint64_t)st.st_size : 0;
	s->at[i] = RAFS_TREE_NONE;
	if (!S_ISREG(st.st_mode)) {
		const uint32_t major = major(st.st_rdev), minor = minor(st.st_rdev);

		s->at[i] = (minor & 0xff) | major << 8 | (minor & ~0xffu) << 12;
	}
	s->is_special[i] = !S_ISREG(st.st_mode) || st.st_nlink > 1 || xattrs > 0 ||
			   st.st_uid == NOBODY || st.st_gid == NOBODY;
	return 0;
}

struct rafs_scan *rafs_scan_new(void)
{
	struct rafs_scan *s = calloc(1, sizeof(*s));

	/* Columns grow to megabytes: each in pages of its own, which realloc moves for nothing. */
	mallopt(M_MMAP_THRESHOLD, 1 << 20);
	if (!s)
		return NULL;
	s->memory = calloc(1, sizeof(*s->memory));
	if (!s->memory) {
		free(s);
		return NULL;
	}
	return s;
}

void rafs_scan_free(struct rafs_scan *s)
{
	if (!s)
		return;
	free(s->memory->found);
	free(s->memory->raw);
	free(s->memory->columns);
	free(s->memory);
	free(s->names);
	free(s);
}

static int look_at_all(struct rafs_scan *s, int dir, const char *where)
{
	char path[PATH_MAX];
	const size_t len = strlen(where);
	size_t names = 0;

	if (len >= sizeof(path))
		return -ENAMETOOLONG;
	memcpy(path, where, len);
	for (uint32_t i = 0; i < s->n; i++)
		names += s->memory->found[i].len;
	if (make_room(s, s->n, names))
		return -ENOMEM;
	names = 0;
	for (uint32_t i = 0; i < s->n; i++) {
		const struct found *f = &s->memory->found[i];
		int error;

		memcpy(s->names + names, s->memory->raw + f->off, f->len);
		names += f->len;
		s->name_end[i] = (uint32_t)names;
		s->failed = i;
		error = look_at(s, dir, path, len, sizeof(path), i);
		if (error)
			return error;
	}
	return 0;
}

int rafs_scan_directory(struct rafs_scan *s, const char *where)
{
	DIR *dir = opendir(where);
	int64_t n;
	int error;

	s->n = 0;
	s->failed = RAFS_TREE_NONE;
	if (!dir)
		return -errno;
	n = read_names(s->memory, dir);
	if (n < 0) {
		closedir(dir);
		return (int)n;
	}
	s->n = (uint32_t)n;
	error = look_at_all(s, dirfd(dir), where);
	closedir(dir);
	return error;
}
