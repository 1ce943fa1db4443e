/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A mounted dmfs as the tools see it: where it is, and its files.
 *
 * A tool is an ordinary client: it knows nothing of the tree but what dmfs(1) says.
 */
#ifndef DMFS_TOOLS_TREE_H
#define DMFS_TOOLS_TREE_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>

/*
 * The mount point to work on: wanted (the user's -m) if not NULL, else $DMFS_MOUNT, else the only dmfs mounted.
 * g_free() it.  NULL: err says which there are, or what is wrong with the one named.
 */
char *tree_find_mount(const char *wanted, GError **err);
/* Mount points of all dmfs in the text of a mountinfo file, which are not covered by another mount. */
GPtrArray *tree_list_mounts(const char *mountinfo);
/* The same of directories of images (-o images=DIR). */
GPtrArray *tree_list_image_mounts(const char *mountinfo);

/* ROOT/NAME/FILE; name or file may be NULL. */
char *tree_path(const char *root, const char *name, const char *file);
/* A whole file.  0 and *text (g_free()), or a negative errno. */
int tree_read(const char *path, char **text);
/* The same in a directory that is open, whatever its name is by now. */
int tree_read_at(int directory, const char *file, char **text);
/* One open, write(2)s until all is taken, one close: 0, or the negative errno of whichever failed first. */
int tree_write(const char *path, const char *text, size_t len);
int tree_write_text(const char *path, const char *text);
/* Sends a message and gets its reply (g_free()), through one open file. */
int tree_message(const char *root, const char *name, const char *text, char **reply);
/* All devices' names, in strcmp's order; NULL with -errno in *error. */
GPtrArray *tree_devices(const char *root, int *error);
bool tree_has_device(const char *root, const char *name);
/* A name or path as one word of a table or of `control`: a backslash quotes the next character. */
char *tree_quote(const char *word);
/* Undoes it, for a text that is one word. */
char *tree_unquote(const char *word);
/*
 * How long the line is that text begins with, without its newline: a quoted newline is one of a word.  comments: a word
 * that begins with # begins one, in which nothing is quoted.
 */
size_t tree_line_length(const char *text, bool comments);
/* The lines of a text that the tree prints, and the words of a line, still quoted; g_strfreev() them. */
char **tree_lines(const char *text);
char **tree_words(const char *line);
/*
 * A text that may stand in a line of output: control characters as \xNN.  In a name, if there are any, all but a few
 * characters are, so that it can be given back to the program.
 */
char *tree_mangle(const char *name);
char *tree_shown_name(const char *name);
char *tree_shown_path(const char *path);

#endif
