package api

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/gofiber/fiber/v2"

	"github.com/passbook/passbook/internal/auth"
)

type userBody struct {
	ID        string    `json:"id"`
	Email     string    `json:"email"`
	CreatedAt timestamp `json:"created_at"`
}

func toUserBody(user auth.User) userBody {
	return userBody{ID: user.ID.String(), Email: user.Email, CreatedAt: timestamp(user.CreatedAt)}
}

func (a *API) signUp(c *fiber.Ctx, _ *query) error {
	b, err := readBody(c)
	if err != nil {
		return err
	}
	email, password := b.text("email"), b.text("password")
	b.check("email", auth.CheckEmail(email))
	b.check("password", auth.CheckPassword(password))
	if err := b.err(); err != nil {
		return err
	}
	if err := a.limitAddress(c); err != nil {
		return err
	}
	user, err := a.cfg.Auth.SignUp(c.UserContext(), email, password)
	if err != nil {
		return err
	}
	a.remember(c, email)
	return c.Status(http.StatusCreated).JSON(toUserBody(user))
}

func (a *API) me(c *fiber.Ctx, _ *query) error {
	user, err := a.cfg.Auth.User(c.UserContext(), caller(c))
	if err != nil {
		return err
	}
	return c.JSON(toUserBody(user))
}

// changePassword answers 401 for a wrong current password as for a wrong one at a log-in: both are
// tries to guess it.
func (a *API) changePassword(c *fiber.Ctx, _ *query) error {
	b, err := readBody(c)
	if err != nil {
		return err
	}
	current, next := b.text("current_password"), b.text("new_password")
	b.check("new_password", auth.CheckPassword(next))
	if err := b.err(); err != nil {
		return err
	}
	user, err := a.cfg.Auth.User(c.UserContext(), caller(c))
	if err != nil {
		return err
	}
	if err := a.limitChange(c, user.ID); err != nil { // a stolen token is no way to guess the password
		return err
	}
	err = a.cfg.Auth.ChangePassword(c.UserContext(), caller(c), current, next)
	switch {
	case errors.Is(err, auth.ErrInvalidCredentials):
		return newProblem(http.StatusUnauthorized, codeInvalidCredentials, "current_password is not your password. Nothing has changed.")
	case err != nil:
		return err
	}
	a.remember(c, user.Email)
	return c.SendStatus(http.StatusNoContent)
}

type tokensBody struct {
	AccessToken      string `json:"access_token"`
	TokenType        string `json:"token_type"`
	ExpiresIn        int64  `json:"expires_in"` // seconds
	RefreshToken     string `json:"refresh_token"`
	RefreshExpiresIn int64  `json:"refresh_expires_in"` // seconds
}

func sendTokens(c *fiber.Ctx, tokens auth.Tokens) error {
	return c.Status(http.StatusCreated).JSON(tokensBody{
		AccessToken:      tokens.AccessToken,
		TokenType:        "Bearer",
		ExpiresIn:        int64(tokens.ExpiresIn.Seconds()),
		RefreshToken:     tokens.RefreshToken,
		RefreshExpiresIn: int64(tokens.RefreshExpiresIn.Seconds()),
	})
}

func (a *API) logIn(c *fiber.Ctx, _ *query) error {
	b, err := readBody(c)
	if err != nil {
		return err
	}
	email, password := b.text("email"), b.text("password")
	if err := b.err(); err != nil {
		return err
	}
	var tokens auth.Tokens
	if err = a.limitLogIn(c, email); err == nil {
		tokens, err = a.cfg.Auth.LogIn(c.UserContext(), email, password)
	}
	a.metrics.logIn(err)
	if err != nil {
		return err
	}
	a.remember(c, email)
	return sendTokens(c, tokens)
}

func (a *API) refresh(c *fiber.Ctx, _ *query) error {
	token, err := readRefreshToken(c)
	if err != nil {
		return err
	}
	var tokens auth.Tokens
	err = a.limitToken(c, func() (err error) {
		tokens, err = a.cfg.Auth.Refresh(c.UserContext(), token)
		return err
	})
	if err != nil {
		return err
	}
	a.remember(c, tokens.Email)
	return sendTokens(c, tokens)
}

// revoke answers an unknown token as it answers a good one (RFC 7009, section 2.2).
func (a *API) revoke(c *fiber.Ctx, _ *query) error {
	token, err := readRefreshToken(c)
	if err != nil {
		return err
	}
	err = a.limitToken(c, func() error { return a.cfg.Auth.Revoke(c.UserContext(), token) })
	if err != nil && !errors.Is(err, auth.ErrInvalidRefreshToken) {
		return err
	}
	return c.SendStatus(http.StatusNoContent)
}

func readRefreshToken(c *fiber.Ctx) (string, error) {
	b, err := readBody(c)
	if err != nil {
		return "", err
	}
	return b.text("refresh_token"), b.err()
}

// accessToken reads Authorization: Bearer TOKEN (RFC 6750); empty for anything else.
func accessToken(c *fiber.Ctx) string {
	scheme, token, _ := strings.Cut(c.Get(fiber.HeaderAuthorization), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return token
}

func (a *API) authenticate(c *fiber.Ctx) (auth.Identity, error) {
	token := accessToken(c)
	if token == "" {
		return auth.Identity{}, auth.ErrUnauthenticated
	}
	identity, err := a.cfg.Auth.Authenticate(c.UserContext(), token)
	if err != nil {
		return auth.Identity{}, fmt.Errorf("authenticate: %w", err)
	}
	return identity, nil
}

// check adds the fault that auth found in a field, unless the field has a fault already.
func (b *body) check(name string, err error) {
	if wrong, ok := errors.AsType[auth.Fault](err); ok && !b.hasFault(name) {
		b.fault(name, wrong.Code, wrong.Detail)
	}
}
