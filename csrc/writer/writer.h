/*
 * The builder's inner loop: read, digest, compress and encrypt many chunks of
 * files in one call, over several threads.  Also the cffi declaration of
 * rafs_v6._writer.  No dedup and no layout here: the caller decides between the
 * two calls what is to be stored, and in which units.
 */

/* One chunk to be.  The caller fills the first part, rafs_build_read the second. */
struct rafs_read_chunk {
	int32_t fd;		/* RAFS_FD_PATH, RAFS_FD_NONE, or a descriptor */
	uint32_t len;		/* 1..RAFS_MAX_CHUNK_SIZE */
	uint64_t off;		/* bytes, in the file or descriptor */
	uint64_t at;		/* bytes, in the arena */
	uint64_t file_off;	/* bytes, in the file that the image will have */
	uint32_t row;		/* of the file in the tree */
	uint32_t is_file;	/* 1: the file has no other chunk */

	int32_t error;		/* 0, or a negative errno; -ENODATA: the file ended too soon */
	uint32_t hole;		/* 1: zeros that were not read, and are not in the arena */
	uint32_t crc32c;
	uint8_t digest[32];
};

#define RAFS_FD_PATH -1	/* the file is opened by the path of its row */
#define RAFS_FD_NONE -2	/* the data are in the arena already */

struct rafs_tree;

/*
 * Read chunks into arena and digest them.  Files that are opened by their paths lie below top, where
 * their rows are in the tree; of both nothing is looked at when there are none.
 * Holes of files are found, not read.  0, or an error of one of the chunks.
 */
int rafs_build_read(struct rafs_read_chunk *chunks, uint32_t n, const char *top,
		    const struct rafs_tree *tree, uint8_t *arena, size_t arena_len,
		    uint32_t digester, uint32_t threads);

/* What an encrypted unit takes at least: XTS has none below 16 bytes (format.md 6.1). */
#define RAFS_BUILD_ROOM 18

/* What is compressed and encrypted as one: a chunk, or a batch of small ones. */
struct rafs_write_unit {
	uint64_t at;		/* bytes, in both arenas; RAFS_BUILD_ROOM of them are its own */
	uint32_t len;		/* 1..RAFS_MAX_CHUNK_SIZE */
	uint32_t clen;		/* out: bytes stored */
	uint32_t compressed;	/* out: 0 when it does not shrink and is stored raw */
	uint32_t batched;	/* of small chunks: they have a context */
};

/* What threads compress with, kept from call to call: making it costs more than a small chunk. */
struct rafs_contexts;
struct rafs_contexts *rafs_contexts_new(void);
void rafs_contexts_free(struct rafs_contexts *contexts);

struct rafs_write_options {
	struct rafs_contexts *contexts;	/* of one call at a time */
	uint32_t compressor;
	int32_t level;
	uint32_t threads;
	uint32_t encrypt;
	uint8_t key[32];
	uint8_t iv[16];
};

/*
 * Compress and encrypt units of arena and pack them back to back, in order,
 * at the start of out, which is as large as arena.  Returns the bytes in out,
 * or a negative errno; -EILSEQ: 18 bytes that decryption would take for padded.
 */
int64_t rafs_build_store(struct rafs_write_unit *units, uint32_t n, const uint8_t *arena,
			 uint8_t *out, size_t arena_len, const struct rafs_write_options *recipe);

/* Of a blob: the next chunk's numbers, and how its records are written. */
struct rafs_blob_end {
	uint32_t index;
	uint32_t contexts;	/* how many batches there were */
	uint64_t flat_size, compressed_size;
	uint32_t v2, encrypted;
};

/*
 * The records of n new chunks: which[k] is one of chunks, and unit_of[k], ascending, the unit
 * that it is stored in.  80 bytes each go to table, 16 or, of version 2, 24 to cct.
 * 0, or -EFBIG: version 2 cannot say the size of one.
 */
int rafs_build_records(const struct rafs_read_chunk *chunks, const uint32_t *which,
		       const uint32_t *unit_of, uint32_t n, const struct rafs_write_unit *units,
		       struct rafs_blob_end *blob, uint8_t *table, uint8_t *cct);

/* Begin to write to the disk what was written to fd since off, so that a sync finds little left. */
void rafs_build_flush(int fd, uint64_t off);

/*
 * A place in a .gz where inflating can start: a deflate block begins there, or
 * the data of a member.  Fields as a zran context has them (format.md 2.7).
 */
struct rafs_gz_point {
	uint64_t in_off;	/* stored bytes before it */
	uint64_t out_off;	/* plain bytes before it */
	uint64_t end_off;	/* stored bytes that hold those plain bytes, <= in_off */
	uint32_t window;	/* plain bytes before it that the rest may refer to, 0..32768 */
	uint8_t byte;		/* the stored byte before it ... */
	uint8_t bits;		/* ... and how many of its high bits are still due, 0..7 */
};

/*
 * Inflates what it is fed to fd, or, with an fd of -1, its input as it is read; notes one point in
 * `spacing` plain bytes.
 */
struct rafs_gunzip;
struct rafs_gunzip *rafs_gunzip_new(int fd, uint32_t spacing);
void rafs_gunzip_free(struct rafs_gunzip *g);
/* -EBADMSG: no gzip; or the errno of writing. */
int rafs_gunzip_feed(struct rafs_gunzip *g, const uint8_t *in, size_t len);
/* Without a file: the next input, which must stay until a read gives 0. */
void rafs_gunzip_input(struct rafs_gunzip *g, const uint8_t *in, size_t len);
/* Plain bytes, up to len; 0 when more input is needed; or as rafs_gunzip_feed. */
int64_t rafs_gunzip_read(struct rafs_gunzip *g, uint8_t *to, size_t len);
/* What was read is kept, from plain byte off on. */
void rafs_gunzip_drop(struct rafs_gunzip *g, uint64_t off);
/* The len plain bytes before off; -EINVAL when they are not kept. */
int rafs_gunzip_before(const struct rafs_gunzip *g, uint64_t off, uint8_t *to, size_t len);
/* After the last feed or read: the sizes of both files as a point, or -ENODATA when it is cut short. */
int rafs_gunzip_end(struct rafs_gunzip *g, struct rafs_gz_point *end);
/* n points, ascending in both offsets; they live as long as g and until the next feed or read. */
const struct rafs_gz_point *rafs_gunzip_points(const struct rafs_gunzip *g, uint64_t *n);

/*
 * Sort n records of a chunk table (80 bytes, format.md 1.17) by digest and blob, and
 * keep one of each such key, the one with the highest chunk index.  Returns how
 * many are left, at the start; the rest is zeroed.
 */
uint32_t rafs_build_sort_table(uint8_t *table, uint32_t n);

/* Add n records to counts, of 65,536 kinds: by the first two bytes of digests, as they sort. */
void rafs_build_count(const uint8_t *table, uint32_t n, uint32_t *counts);

/* Copy those of n records whose kind is in [low, high) to out, as of this blob; returns how many. */
uint32_t rafs_build_select(const uint8_t *table, uint32_t n, uint32_t blob, uint32_t low,
			   uint32_t high, uint8_t *out);

/*
 * A set of chunks by digest and size, numbered as they come.  Returns the chunk's
 * number, which is that of a new one when it is how many there were; or -ENOMEM.
 */
struct rafs_keys;
struct rafs_keys *rafs_keys_new(void);
void rafs_keys_free(struct rafs_keys *keys);
int64_t rafs_keys_number(struct rafs_keys *keys, const uint8_t *digest, uint32_t size);
/* The same of many chunks, in order.  0 or -ENOMEM. */
int rafs_keys_numbers(struct rafs_keys *keys, const struct rafs_read_chunk *chunks, uint32_t n,
		      uint32_t *numbers);

#define RAFS_TREE_NONE 0xffffffff

/*
 * A directory as columns, one value an entry, sorted by the bytes of their names.  They stay until
 * the next is scanned.
 */
struct rafs_scan_memory;
struct rafs_scan {
	uint32_t n;
	uint32_t failed;	/* the entry that could not be looked at; RAFS_TREE_NONE: the directory */
	char *names;		/* one behind the other, without an end */
	uint32_t *name_end;	/* bytes, in names */
	uint16_t *mode;
	uint32_t *uid;
	uint32_t *gid;
	int64_t *mtime;
	uint32_t *mtime_nsec;
	uint64_t *size;		/* of files and links; else 0 */
	uint32_t *at;		/* RAFS_TREE_NONE of a file, else the device number as on disk */
	uint8_t *is_special;	/* 0: a file of one name without xattrs */
	struct rafs_scan_memory *memory;
};
struct rafs_scan *rafs_scan_new(void);
void rafs_scan_free(struct rafs_scan *s);
/* 0 or a negative errno; -ENAMETOOLONG: of a name that an image cannot have, or of a path. */
int rafs_scan_directory(struct rafs_scan *s, const char *where);

/*
 * A flag of a row, also the first byte of i_reserved2 on disk, which readers pass over: a
 * directory that its layer does not list (docs/format.md, 4.4).
 */
#define RAFS_ROW_IMPLIED 1
#define RAFS_LAYOUT_START 4096	/* bytes of the region that stay empty */

/*
 * A tree by columns, one row for every name, in the order of format.md 1.15: the
 * rows of a directory's entries are neighbours, sorted by name, behind its own.
 * The arrays are the caller's; what they say of each other must be right.
 */
struct rafs_tree {
	uint32_t n;
	uint32_t block;		/* 4096, or 512 for tarfs */
	uint32_t chunk_size;	/* a power of two, >= block */
	const uint16_t *mode;
	const uint32_t *uid;
	const uint32_t *gid;
	const int64_t *mtime;
	const uint32_t *mtime_nsec;
	const uint64_t *size;	/* directory: its entries */
	/* First entry, start in targets, device as on disk, or first of refs (RAFS_TREE_NONE: none) */
	const uint32_t *at;
	const uint8_t *flags;
	const uint32_t *parent;
	const uint32_t *link;	/* row of the inode's first name, mostly its own */
	const uint32_t *name;	/* n + 1 offsets in names */
	const uint32_t *xattr;	/* number of a set; set i is from xattr_off[i] to [i + 1] */
	const uint8_t *names;
	const uint8_t *targets;
	const uint8_t *xattrs;
	const uint32_t *xattr_off;
	const uint32_t *refs;	/* places of chunks; size / chunk_size of them, rounded up, a file */
	const uint16_t *location_blob;
	const uint32_t *location_index;
	const uint64_t *location_flat;	/* bytes */
	const uint16_t *blob_index;	/* of location_blob, in the blob table; 0xffff: not there */
	/* Set by rafs_layout_place, n each. */
	uint32_t *nid;
	uint32_t *data;		/* block of a directory's or link's data */
	uint32_t *dlen;		/* their bytes; bit 31: the tail is inline */
	uint32_t *nlink;
};

/* From now on large arrays of this process are mapped, and go back to the system when freed. */
void rafs_build_map_columns(void);
/* Values of `width` bytes in `rows` of `from` go to those places of `to` where `which` is `me`. */
void rafs_build_gather(uint8_t *to, const uint8_t *from, uint32_t width, const uint32_t *rows,
		       const uint8_t *which, uint8_t me, uint32_t n);
/* There, `at` of links moves by `targets`, and of files with chunks by `refs`. */
void rafs_build_shift(uint32_t *at, const uint16_t *mode, const uint8_t *which, uint8_t me,
		      uint32_t n, uint32_t targets, uint32_t refs);

/*
 * Find the places (format.md 1.15); the bytes that they take with RAFS_LAYOUT_START.
 * -EFBIG: more than nids can count; -ENOENT: a file has data in a blob without index.
 */
int64_t rafs_layout_place(struct rafs_tree *t);

/* Bytes from..from + len of the region. */
void rafs_layout_render(const struct rafs_tree *t, uint64_t meta_addr, uint64_t from,
			uint8_t *out, size_t len);

/*
 * The files of a tree that have data in a source, each once though it may have many names.  seen: a
 * byte a row, of those that are not to be found (again); files: room for all.  Returns how many.
 */
uint32_t rafs_build_unread(const struct rafs_tree *t, uint8_t *seen, uint32_t *files);

/* Where cutting files into chunks has come to. */
struct rafs_cut {
	uint32_t next;		/* in the rows */
	uint32_t room;		/* bytes of the arena at least for each chunk */
	uint64_t at;		/* bytes, in the file of that row */
	uint64_t arena_len;
};

/*
 * The next chunks of files that are opened by their paths: as many as there is room for, one arena
 * full.  Returns how many; 0 at the end.
 */
uint32_t rafs_build_cut(const struct rafs_tree *t, const uint32_t *rows, uint32_t nrows,
			struct rafs_cut *cut, struct rafs_read_chunk *chunks, uint32_t max);

/* Where chunks come to lie: found has the location of each number, and room for n more. */
struct rafs_locations {
	uint32_t *found;
	uint32_t nfound;
	uint32_t next;		/* number of the next location */
	uint32_t next_index;	/* in the blob that is built */
	uint32_t nfirst;	/* out: files that begin; room for n of their rows and refs */
	uint64_t next_flat;
	uint32_t *index;	/* out, of each new location; room for n */
	uint64_t *flat;
	uint32_t *first_row;
	uint32_t *first_ref;	/* among these n */
};

/*
 * Locations of n chunks by their numbers, to refs.  Files that begin are only told: the tree, which
 * may be growing, is not looked at.  Returns how many are new; which says which.
 */
uint32_t rafs_build_locate(const struct rafs_read_chunk *chunks, uint32_t n,
			   const uint32_t *numbers, struct rafs_locations *l, uint32_t *refs,
			   uint32_t *which);

/*
 * Units of the n chunks that which names: one each, or batches of small files of less than limit
 * bytes, whose data are moved together.  unit_of: n.  Returns how many units.
 */
uint32_t rafs_build_pack(const struct rafs_read_chunk *chunks, const uint32_t *which, uint32_t n,
			 uint32_t limit, uint8_t *arena, struct rafs_write_unit *units,
			 uint32_t *unit_of);
