/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Selections, as -S takes them:
 *
 *   any:        all { ("||" | "#") all }
 *   all:        one { ("&&" | ",") one }
 *   one:        ["!"] "(" any ")"  |  field operator value
 *   operator:   =~ !~ (regular expressions)  = !=  and for numbers >= > <= <
 *   value:      quoted by ' or ", or up to a blank or one of , & | # ( ) { } [ ]
 *
 * Parentheses nest up to MAX_DEPTH.
 */
#include <ctype.h>
#include <regex.h>
#include <string.h>

#include "report.h"

#define MAX_DEPTH 100

enum op { OP_EQ, OP_NE, OP_GE, OP_GT, OP_LE, OP_LT, OP_MATCH, OP_NO_MATCH };

static const struct {
	const char *text;
	enum op op;
} operators[] = {
	{"=~", OP_MATCH}, {"!~", OP_NO_MATCH}, {"!=", OP_NE}, {">=", OP_GE},
	{"<=", OP_LE},	  {"=", OP_EQ},	       {">", OP_GT},  {"<", OP_LT},
};

enum kind { ANY, ALL, NOT, COMPARE };

struct selection {
	enum kind kind;
	GPtrArray *parts; /* of struct selection; ANY, ALL, NOT */
	const struct field *field;
	enum op op;
	char *text;
	double number;
	regex_t regex;
	bool has_regex;
};

struct parser {
	const struct report_type *type;
	const char *p;
	unsigned depth;
	bool helped;
};

static struct selection *new_node(enum kind kind)
{
	struct selection *s = g_new0(struct selection, 1);

	s->kind = kind;
	s->parts = g_ptr_array_new_with_free_func((GDestroyNotify)selection_free);
	return s;
}

void selection_free(struct selection *s)
{
	if (!s)
		return;
	g_ptr_array_free(s->parts, TRUE);
	if (s->has_regex)
		regfree(&s->regex);
	g_free(s->text);
	g_free(s);
}

/* --- help ---------------------------------------------------------------------------------- */

static void operator_help(void)
{
	fputs("Selection operands\n"
	      "------------------\n"
	      "  field               - Reporting field.\n"
	      "  number              - Non-negative number.\n"
	      "  string              - Characters quoted by ' or \" or unquoted.\n"
	      "  regular expression  - Characters quoted by ' or \" or unquoted.\n"
	      " \n"
	      "Selection operators\n"
	      "-------------------\n"
	      "  Comparison operators:\n"
	      "        =~  - Matching regular expression. [regex]\n"
	      "        !~  - Not matching regular expression. [regex]\n"
	      "         =  - Equal to. [number, string]\n"
	      "        !=  - Not equal to. [number, string]\n"
	      "        >=  - Greater than or equal to. [number]\n"
	      "         >  - Greater than. [number]\n"
	      "        <=  - Less than or equal to. [number]\n"
	      "         <  - Less than. [number]\n"
	      " \n"
	      "  Logical and grouping operators:\n"
	      "      &&  - All fields must match\n"
	      "       ,  - All fields must match\n"
	      "      ||  - At least one field must match\n"
	      "       #  - At least one field must match\n"
	      "       !  - Logical negation\n"
	      "       (  - Left parenthesis\n"
	      "       )  - Right parenthesis\n"
	      " \n",
	      stderr);
}

static void selection_help(const struct report_type *type)
{
	report_help(type, false, true, stderr);
	operator_help();
}

static struct selection *bad(struct parser *in, const char *at, const char *format, const char *what)
{
	(void)in;
	fprintf(stderr, format, what);
	fprintf(stderr, "\nSelection syntax error at '%s'.\nUse 'help' for selection to get more help.\n", at);
	return NULL;
}

/* --- parsing ---------------------------------------------------------------------------------- */

static void blanks(struct parser *in)
{
	while (isspace((unsigned char)*in->p))
		in->p++;
}

static bool take(struct parser *in, const char *text)
{
	blanks(in);
	if (strncmp(in->p, text, strlen(text)))
		return false;
	in->p += strlen(text);
	return true;
}

/* The value's text, or NULL after an unfinished quote. */
static char *parse_value(struct parser *in)
{
	const char *start = in->p, *end;
	char quote = *start;

	if (quote == '"' || quote == '\'' ) {
		end = strchr(++start, quote);
		in->p = end ? end + 1 : start;
	} else {
		end = start + strcspn(start, " \t\n,&|#()");
		in->p = end;
	}
	return end ? g_strndup(start, (gsize)(end - start)) : NULL;
}

static bool parse_number(struct selection *s, const char **why)
{
	char *end;

	s->number = g_ascii_strtod(s->text, &end);
	if (end == s->text || !isdigit((unsigned char)*s->text) || (*end && strcmp(end, "%"))) {
		*why = "Failed to parse numeric value for selection field %s.";
		return false;
	}
	*why = "Found percent value but numeric value expected for selection field %s.";
	return !*end;
}

static struct selection *check_value(struct parser *in, const char *at, struct selection *s)
{
	const char *why;

	if (s->op == OP_MATCH || s->op == OP_NO_MATCH) {
		s->has_regex = !regcomp(&s->regex, s->text, REG_EXTENDED | REG_NOSUB);
		if (s->has_regex)
			return s;
		why = "Failed to parse regex value for selection field %s.";
	} else if (s->field->type != FIELD_NUMBER || parse_number(s, &why)) {
		return s;
	}
	bad(in, at, why, s->field->id);
	selection_free(s);
	return NULL;
}

static struct selection *parse_comparison(struct parser *in)
{
	const char *at, *name;
	size_t len = 0, op = 0;
	struct selection *s;

	blanks(in);
	at = name = in->p;
	while (isalnum((unsigned char)name[len]) || name[len] == '_' || name[len] == '?')
		len++;
	if (!len)
		return bad(in, at, "Expecting field name%s", "");
	if ((len == 4 && !strncmp(name, "help", 4)) || (len == 1 && *name == '?')) {
		selection_help(in->type);
		in->helped = true;
		return NULL;
	}
	s = new_node(COMPARE);
	s->field = report_field(in->type, name, len);
	if (!s->field) {
		g_autofree char *word = g_strndup(name, len);

		selection_free(s);
		report_help(in->type, false, true, stderr);
		return bad(in, at, "Unrecognised selection field: %s", word);
	}
	in->p += len;
	while (op < G_N_ELEMENTS(operators) && !take(in, operators[op].text))
		op++;
	if (op == G_N_ELEMENTS(operators)) {
		selection_free(s);
		operator_help();
		return bad(in, at, "Unrecognised comparison operator: %s", in->p);
	}
	s->op = operators[op].op;
	if (s->field->type != FIELD_NUMBER && s->op >= OP_GE && s->op <= OP_LT) {
		selection_free(s);
		operator_help();
		return bad(in, at, "Operator can be used only with number, size, time or percent fields: %s", at);
	}
	blanks(in);
	s->text = parse_value(in);
	if (!s->text) {
		g_autofree char *kind = g_strdup_printf(
			"Missing end quote.\nFailed to parse %s value for selection field %%s.",
			s->op == OP_MATCH || s->op == OP_NO_MATCH ? "regex" : "string");

		bad(in, at, kind, s->field->id);
		selection_free(s);
		return NULL;
	}
	return check_value(in, at, s);
}

static struct selection *parse_any(struct parser *in);

static struct selection *parse_group(struct parser *in)
{
	struct selection *s;

	if (++in->depth > MAX_DEPTH)
		return bad(in, in->p, "Parentheses nest more than %s deep", G_STRINGIFY(MAX_DEPTH));
	s = parse_any(in);
	in->depth--;
	if (s && !take(in, ")")) {
		fprintf(stderr, "Syntax error: right parenthesis expected at '%s'\n", in->p);
		selection_free(s);
		return NULL;
	}
	return s;
}

static struct selection *parse_one(struct parser *in)
{
	struct selection *s, *inner;
	bool negated = false;

	if (take(in, "!"))
		negated = true;
	if (take(in, "(")) {
		inner = parse_group(in);
	} else if (negated) {
		fprintf(stderr, "Syntax error: left parenthesis expected at '%s'\n", in->p);
		return NULL;
	} else {
		inner = parse_comparison(in);
	}
	if (!inner || !negated)
		return inner;
	s = new_node(NOT);
	g_ptr_array_add(s->parts, inner);
	return s;
}

static struct selection *parse_list(struct parser *in, enum kind kind)
{
	static const char *const separators[][2] = {[ANY] = {"||", "#"}, [ALL] = {"&&", ","}};
	struct selection *s = new_node(kind), *part;

	do {
		part = kind == ANY ? parse_list(in, ALL) : parse_one(in);
		if (!part) {
			selection_free(s);
			return NULL;
		}
		g_ptr_array_add(s->parts, part);
	} while (take(in, separators[kind][0]) || take(in, separators[kind][1]));
	return s;
}

static struct selection *parse_any(struct parser *in)
{
	return parse_list(in, ANY);
}

struct selection *selection_parse(const struct report_type *type, const char *text, bool *helped)
{
	struct parser in = {.type = type, .p = text};
	struct selection *s = parse_any(&in);

	*helped = in.helped;
	if (!s)
		return NULL;
	blanks(&in);
	if (*in.p) {
		bad(&in, in.p, "Expecting logical operator%s", "");
		selection_free(s);
		return NULL;
	}
	return s;
}

/* --- matching -------------------------------------------------------------------------------------- */

static bool compare(const struct selection *s, const struct value *v)
{
	bool number = s->field->type == FIELD_NUMBER;

	switch (s->op) {
	case OP_EQ:
		return number ? v->number == s->number : !strcmp(v->text->str, s->text);
	case OP_NE:
		return number ? v->number != s->number : strcmp(v->text->str, s->text);
	case OP_GE:
		return v->number >= s->number;
	case OP_GT:
		return v->number > s->number;
	case OP_LE:
		return v->number <= s->number;
	case OP_LT:
		return v->number < s->number;
	case OP_MATCH:
		return !regexec(&s->regex, v->text->str, 0, NULL, 0);
	case OP_NO_MATCH:
		return regexec(&s->regex, v->text->str, 0, NULL, 0);
	}
	return false;
}

static bool matches_field(const struct selection *s, const void *object)
{
	struct value v = {g_string_new(NULL), 0};
	bool result;

	if (s->field->get) {
		s->field->get(object, &v);
	} else {
		v.number = 1; /* "selected" */
		g_string_append_c(v.text, '1');
	}
	result = compare(s, &v);
	g_string_free(v.text, TRUE);
	return result;
}

bool selection_matches(const struct selection *s, const void *object)
{
	if (s->kind == COMPARE)
		return matches_field(s, object);
	if (s->kind == NOT)
		return !selection_matches(s->parts->pdata[0], object);
	for (unsigned i = 0; i < s->parts->len; i++)
		if (selection_matches(s->parts->pdata[i], object) == (s->kind == ANY))
			return s->kind == ANY;
	return s->kind == ALL;
}
